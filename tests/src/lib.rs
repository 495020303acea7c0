//! ferry's test rig: starts guests, images, networks and peers for the end-to-end tests.
