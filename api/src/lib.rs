//! ferry's control interface: QMP types, server and client; knows nothing of KVM.
