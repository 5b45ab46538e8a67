//! Signed messages: who sent this one, and the signature of what goes back.

use std::{
    net::IpAddr,
    time::{SystemTime, UNIX_EPOCH},
};

use flashdns_core::{
    Ask, Outcome, Rtype, Transport, answer_to,
    cookie::{Cookies, Secret},
    tsig::{self, Refusal, Signer},
};

use crate::{keys::KnownKey, server::Shared, xfr};

/// What a look at a message's signature came to.
pub(crate) enum Checked {
    /// It has none.
    Unsigned,
    /// It is good: whose it is, and what signs the replies.
    Good(KnownKey, Signer),
    /// It is not; the reply is written.
    Refused,
}

/// Seconds since 1970, as signatures say it.
pub(crate) fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// Checks a message's signature; when it is not good, `out` is the reply.
pub(crate) fn check(shared: &Shared, message: &[u8], out: &mut Vec<u8>) -> Checked {
    const FORMERR: u16 = 1;
    let malformed = |out: &mut Vec<u8>| {
        flashdns_core::transfer::refuse(message, FORMERR, out);
        Checked::Refused
    };
    let request = match tsig::find(message) {
        Ok(Some(request)) => request,
        Ok(None) => return Checked::Unsigned,
        Err(_) => return malformed(out),
    };
    let ring = shared.keys.load();
    let known = ring.get(request.key());
    let key = known.map(|known| &known.key);
    match (request.verify(key, now_s()), known) {
        (Ok(Ok(signer)), Some(known)) => Checked::Good(known.clone(), signer),
        (Ok(Err(refusal)), _) => {
            shared.metrics.signatures_refused.inc();
            tracing::debug!(key = %request.key(), ?refusal, "a signature is refused");
            tsig::refuse(message, &request, key, refusal, now_s(), out);
            Checked::Refused
        }
        // A good signature has its key.
        (Ok(Ok(_)), None) => {
            tsig::refuse(message, &request, None, Refusal::BadKey, now_s(), out);
            Checked::Refused
        }
        (Err(_), _) => malformed(out),
    }
}

/// Whether a datagram is other than a plain question: signed, or a question for a transfer. A cheap look.
pub(crate) fn is_special(query: &[u8]) -> bool {
    tsig::may_be_signed(query) || xfr::is_wanted(query)
}

/// The outcome that is counted for a reply that was written here.
fn outcome(out: &[u8], rtype: Option<Rtype>) -> Outcome {
    match out.get(3) {
        Some(flags) => Outcome::Reply {
            rcode: u16::from(flags & 0xf),
            rtype,
        },
        None => Outcome::Silence,
    }
}

/// Answers an ordinary question that may be signed; the reply then is too.
pub(crate) fn answer(
    shared: &Shared,
    query: &[u8],
    transport: Transport,
    cookies: Option<Cookies<'_>>,
    out: &mut Vec<u8>,
) -> (Outcome, bool) {
    let checked = if tsig::may_be_signed(query) && !is_response(query) {
        check(shared, query, out)
    } else {
        Checked::Unsigned
    };
    let snapshot = shared.published.load();
    let ask = |room| Ask {
        transport,
        room,
        cookies,
    };
    match checked {
        Checked::Unsigned => answer_to(&snapshot, query, &ask(0), out),
        Checked::Refused => (outcome(out, None), false),
        Checked::Good(known, mut signer) => {
            let (outcome, _) = answer_to(&snapshot, query, &ask(known.key.room()), out);
            if outcome != Outcome::Silence {
                signer.sign(out, now_s());
            }
            // Nobody else has the key.
            (outcome, true)
        }
    }
}

fn is_response(query: &[u8]) -> bool {
    query.get(2).is_none_or(|flags| flags & 0x80 != 0)
}

/// Answers a datagram that [`is_special`].
pub(crate) fn special(
    shared: &Shared,
    query: &[u8],
    client: Option<IpAddr>,
    cookies: Option<Cookies<'_>>,
    out: &mut Vec<u8>,
) -> (Outcome, bool) {
    let Some(client) = client.filter(|_| xfr::is_wanted(query)) else {
        return answer(shared, query, Transport::Udp, cookies, out);
    };
    let (known, signer) = match check(shared, query, out) {
        Checked::Unsigned => (None, None),
        Checked::Good(known, signer) => (Some(known), Some(signer)),
        Checked::Refused => return (outcome(out, Some(Rtype::IXFR)), false),
    };
    xfr::over_udp(shared, query, known.as_ref(), client, out);
    if let Some(mut signer) = signer {
        signer.sign(out, now_s());
        return (outcome(out, Some(Rtype::IXFR)), true);
    }
    (outcome(out, Some(Rtype::IXFR)), false)
}

/// What answering one client needs to know of cookies.
pub(crate) fn cookies((current, others): &(Secret, Vec<Secret>), client: IpAddr) -> Option<Cookies<'_>> {
    let [.., a, b, c, d] = now_s().to_be_bytes();
    Some(Cookies {
        current,
        others,
        now_s: u32::from_be_bytes([a, b, c, d]),
        client,
    })
}
