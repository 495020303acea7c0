//! The mirror on simulated disks: every run is decided by its seed.

mod errors;
mod files;
mod layers;
mod lifecycle;
mod rig;
mod rules;
mod start;
mod storm;
