//! Client of Chainfire, and of any server that speaks etcd's v3 API.
pub mod wire;
