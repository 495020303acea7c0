//! ferry's live migration: state sections, stream, RAM transfer and the handover.
