//! Recording: tensors are names, operations are appended to a tape, and nothing is computed. A recorded tape is
//! what `program/` differentiates, plans and replays.
#[expect(clippy::module_inception, reason = "the room is named for what stands in it")]
pub mod tape;
pub mod tensor;

pub use tape::{Adjoint, Define, Io, Op, Precision, Tape};
pub use tensor::{Dtype, Info, Role, Tensor};
