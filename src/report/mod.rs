//! What people look at: pictures of what a model saw and made of it.
mod letters;
pub mod montage;
