//! Messages as JSON, by protobuf's mapping: bytes in base64, 64-bit numbers as text, enums by name, fields by the
//! names of the .proto (camelCase is understood too), default values left out.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use prost_reflect::{DeserializeOptions, DynamicMessage, MessageDescriptor, SerializeOptions};
use serde::de::IgnoredAny;
use tonic::Status;

/// What stands before each message on a gRPC stream: a flag and the length (gRPC over HTTP/2, "Length-Prefixed-Message").
const FRAME_HEADER: usize = 5;

/// A JSON object as a message in its gRPC frame; no text at all is the empty message.
pub(super) fn to_frame(kind: &MessageDescriptor, text: &[u8]) -> Result<Bytes, Status> {
    let message = if text.trim_ascii().is_empty() {
        DynamicMessage::new(kind.clone())
    } else {
        let options = DeserializeOptions::new().deny_unknown_fields(false);
        let mut reader = serde_json::Deserializer::from_slice(text);
        DynamicMessage::deserialize_with_options(kind.clone(), &mut reader, &options)
            .map_err(|error| Status::invalid_argument(error.to_string()))?
    };
    let length = message.encoded_len();
    let announced =
        u32::try_from(length).map_err(|_| Status::invalid_argument("the message is too large"))?;
    let mut frame = BytesMut::with_capacity(FRAME_HEADER + length);
    frame.put_u8(0);
    frame.put_u32(announced);
    frame.extend_from_slice(&message.encode_to_vec());
    Ok(frame.freeze())
}

/// A message as JSON.
pub(super) fn to_text(kind: &MessageDescriptor, message: Bytes) -> Result<Vec<u8>, Status> {
    let broken =
        |error: &dyn std::fmt::Display| Status::internal(format!("the answer cannot be shown: {error}"));
    let message = DynamicMessage::decode(kind.clone(), message).map_err(|error| broken(&error))?;
    let options = SerializeOptions::new()
        .use_proto_field_name(true)
        .stringify_64_bit_integers(true)
        .skip_default_fields(true);
    let mut text = Vec::new();
    message
        .serialize_with_options(&mut serde_json::Serializer::new(&mut text), &options)
        .map_err(|error| broken(&error))?;
    Ok(text)
}

/// Takes the first whole gRPC frame off the front; its message.
pub(super) fn take_message(read: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let Some((header, _)) = read.split_first_chunk::<FRAME_HEADER>() else {
        return Ok(None);
    };
    let [flag, length @ ..] = *header;
    if flag != 0 {
        // Nobody offered to accept compression.
        return Err(Status::internal("the answer is compressed"));
    }
    let length = usize::try_from(u32::from_be_bytes(length)).unwrap_or(usize::MAX);
    if read.len() - FRAME_HEADER < length {
        return Ok(None);
    }
    read.advance(FRAME_HEADER);
    Ok(Some(read.split_to(length).freeze()))
}

/// Takes the first whole JSON value off the front; `None` while there is none.
pub(super) fn take_value(read: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    let mut values = serde_json::Deserializer::from_slice(read).into_iter::<IgnoredAny>();
    match values.next() {
        None => Ok(None),
        Some(Ok(IgnoredAny)) => {
            let end = values.byte_offset();
            Ok(Some(read.split_to(end).freeze()))
        }
        Some(Err(error)) if error.is_eof() => Ok(None),
        Some(Err(error)) => Err(Status::invalid_argument(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use prost_reflect::DescriptorPool;

    use super::*;

    fn kind(name: &str) -> MessageDescriptor {
        let pool = DescriptorPool::decode(chainfire_client::wire::DESCRIPTORS).unwrap();
        pool.get_message_by_name(name).unwrap()
    }

    /// There and back: what a client may write, and how it is written here.
    fn check(name: &str, given: &str, shown: &str) {
        let kind = kind(name);
        let mut frame = BytesMut::from(to_frame(&kind, given.as_bytes()).unwrap().as_ref());
        let message = take_message(&mut frame).unwrap().unwrap();
        assert!(frame.is_empty());
        assert_eq!(
            String::from_utf8(to_text(&kind, message).unwrap()).unwrap(),
            shown
        );
    }

    #[test]
    fn the_mapping_is_protobufs() {
        let range = "etcdserverpb.RangeRequest";
        check(range, "", "{}");
        check(range, "{}", "{}");
        check(range, r#"{"key":"","limit":0,"sort_order":"NONE"}"#, "{}");
        check(
            range,
            r#"{"rangeEnd":"_-8=","limit":"7","revision":8,"sortOrder":2,"sort_target":"MOD","serializable":true,"new":[1]}"#,
            r#"{"range_end":"/+8=","limit":"7","revision":"8","sort_order":"DESCEND","sort_target":"MOD","serializable":true}"#,
        );
        check(
            "etcdserverpb.LeaseGrantRequest",
            r#"{"TTL":"60","ID":-5}"#,
            r#"{"TTL":"60","ID":"-5"}"#,
        );
        check(
            "etcdserverpb.TxnRequest",
            r#"{"compare":[{"target":"VALUE","value":""}],"success":[{"requestPut":{}}]}"#,
            r#"{"compare":[{"target":"VALUE","value":""}],"success":[{"request_put":{}}]}"#,
        );
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "[]",
            "{",
            r#"{"key":5}"#,
            r#"{"key":"*"}"#,
            r#"{"limit":"x"}"#,
            "nothing",
        ] {
            let error = to_frame(&kind("etcdserverpb.RangeRequest"), text.as_bytes()).unwrap_err();
            assert_eq!(error.code(), tonic::Code::InvalidArgument, "{text}");
        }
    }

    #[test]
    fn values_are_taken_one_by_one() {
        let mut read = BytesMut::from(&b" {\"a\":1}\n{\"b\""[..]);
        assert_eq!(take_value(&mut read).unwrap().unwrap(), " {\"a\":1}");
        assert_eq!(take_value(&mut read).unwrap(), None);
        read.extend_from_slice(b":2} ");
        assert_eq!(take_value(&mut read).unwrap().unwrap(), "\n{\"b\":2}");
        assert_eq!(take_value(&mut read).unwrap(), None);
        read.extend_from_slice(b"}");
        assert!(take_value(&mut read).is_err());
    }
}
