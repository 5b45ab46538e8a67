//! Names, identifiers and error kinds that every part of Hearth shares.
//!
//! What it does not know: any service, any wire format, time, randomness, I/O. It stays this small for ever; a type
//! belongs here only when at least three services speak of it in their interfaces.
//!
//! Entry points: [`Name`], the identifiers in [`id`], [`ErrorKind`], [`PageToken`], [`Labels`].
//!
//! Invariants: a value of these types is valid (construction is the only check); `Display` and `FromStr` are inverse;
//! serde uses the same text as `Display`.

mod error_kind;
pub mod id;
mod labels;
mod name;
mod page;

pub use error_kind::ErrorKind;
pub use id::{BindingId, FolderId, ImageId, OperationId, OrganisationId, PrincipalId, ProjectId, VmId};
pub use labels::{LabelError, Labels, MAX_LABELS};
pub use name::{MAX_NAME_LENGTH, Name, NameError};
pub use page::{MAX_PAGE_SIZE, PageToken, PageTokenError};
