//! A cluster on this machine: what it consists of, its files, its start and its end.

pub(crate) mod control;
pub(crate) mod doctor;
pub(crate) mod down;
mod files;
pub(crate) mod first_vm;
pub(crate) mod init;
pub(crate) mod layout;
pub(crate) mod sign_in;
pub(crate) mod status;
pub(crate) mod up;
