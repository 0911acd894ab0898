//! What people look at: pictures of what a model saw and made of it.
pub mod contact;
mod letters;
pub mod montage;
