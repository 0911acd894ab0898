//! What replays a planned program, as training and inference see it.
use super::feed::Volumes;
use super::{Array, Arrays, plan::Plan};
use crate::machine::{Real, cuda};
use crate::tape::{Role, Tape, Tensor};
use half::f16;
use std::ops::Range;
use std::time::Duration;

/// A machine with a program: values go in, operations run, values come out. Errors are those of a device; a host has
/// none.
pub trait Machine {
    /// The precision that values go in and come out in, whatever the machine computes in.
    type Real: Real;
    /// What was recorded.
    fn tape(&self) -> &Tape;
    /// Where everything lies.
    fn plan(&self) -> &Plan;
    /// Bytes that the machine holds for the program.
    fn bytes(&self) -> usize;
    /// Runs some of the operations, in order.
    fn run_ops(&mut self, ops: Range<usize>) -> cuda::Result<()>;
    /// Runs some of the operations and says how long they took, once they are done.
    fn time_ops(&mut self, ops: Range<usize>) -> cuda::Result<Duration>;
    /// Fills an input, a parameter or a state.
    fn write(&mut self, t: Tensor, values: &[Self::Real]) -> cuda::Result<()>;
    /// Fills an input of indices.
    fn write_indices(&mut self, t: Tensor, values: &[u32]) -> cuda::Result<()>;
    /// Fills an input of stored volumes, one after the other.
    fn write_stored(&mut self, t: Tensor, values: &[&[f16]]) -> cuda::Result<()>;
    /// Fills an input of stored volumes with those of `from` that have these numbers.
    fn fill_stored(&mut self, t: Tensor, from: &dyn Volumes, numbers: &[usize]) -> cuda::Result<()>;
    /// Says which volumes [`fill_stored`](Self::fill_stored) will be asked for next, so that they can be on their way
    /// while the machine computes.
    fn prefetch_stored(&mut self, _: &dyn Volumes, _: &[usize]) -> cuda::Result<()> {
        Ok(())
    }
    /// What is in a parameter, a state or a kept temporary.
    fn read(&self, t: Tensor) -> cuda::Result<Vec<Self::Real>>;
    /// What is in a kept temporary of indices.
    fn read_indices(&self, t: Tensor) -> cuda::Result<Vec<u32>>;

    /// Runs all operations.
    fn run(&mut self) -> cuda::Result<()> {
        self.run_ops(0..self.tape().ops().len())
    }
    /// Parameters and frozen tensors by name.
    fn weights(&self) -> cuda::Result<Arrays<Self::Real>> {
        let array = |t: Tensor| {
            let info = self.tape().info(t);
            let name = info.name.clone().expect("weights have names");
            Ok((name, Array { shape: info.shape.clone(), data: self.read(t)? }))
        };
        self.tape().with_role(Role::Param).chain(self.tape().with_role(Role::Frozen)).map(array).collect()
    }
    /// Writes all of `arrays`, each into the tensor of its name.
    #[track_caller]
    fn load(&mut self, arrays: &Arrays<Self::Real>) -> cuda::Result<()> {
        for (name, array) in arrays {
            let t = self.tape().named(name).unwrap_or_else(|| panic!("no tensor is called {name}"));
            self.write(t, &array.data)?;
        }
        Ok(())
    }
}
