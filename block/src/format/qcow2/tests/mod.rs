//! Tests of the running driver, most of them with QEMU's tools as judges.

mod bitmaps;
mod crash;
mod damage;
mod faults;
mod given_up;
mod history;
mod interop;
mod kill;
mod owner;
mod raced;
mod random;
mod resize;
mod rig;
mod simulated;
mod size;
mod storm;
mod subclusters;
mod sweep;
