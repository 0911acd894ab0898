//! What people look at: pictures of what a model saw and made of it, and pages that report a run.
pub mod brain_age;
pub mod chart;
pub mod contact;
pub mod html;
mod letters;
pub mod montage;
pub mod pretraining;
pub mod qc;
mod run;
pub mod study;
pub mod viewer;
