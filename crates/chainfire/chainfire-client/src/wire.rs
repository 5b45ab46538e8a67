//! The etcd v3 messages and gRPC stubs (client and server), generated from `proto/etcd`.
//!
//! Server stubs live here too so that `chainfire-server` does not compile the same files again.

#![allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    unused_qualifications,
    reason = "generated from proto/etcd, which carries the documentation"
)]

/// All messages and services, as an encoded `FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/etcd.bin"));

/// `mvccpb`: stored pairs and events.
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// `etcdserverpb`: requests, responses, services.
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// `authpb`: users, roles, permissions.
pub mod authpb {
    tonic::include_proto!("authpb");
}

/// `v3electionpb`: leader election as a service.
pub mod v3electionpb {
    tonic::include_proto!("v3electionpb");
}

/// `v3lockpb`: locks as a service.
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}
