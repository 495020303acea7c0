//! ferry's block layer: graphs of image nodes, dirty tracking and the jobs that move disks.
