//! Links the guest as a freestanding program at a fixed address, with the ordinary host toolchain.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR");
    for arg in ["-nostartfiles", "-nostdlib", "-static", "-no-pie", "-Wl,--build-id=none"] {
        println!("cargo::rustc-link-arg-bins={arg}");
    }
    println!("cargo::rustc-link-arg-bins=-Wl,-T,{dir}/link.ld");
    for file in ["link.ld", "src/boot.s", "build.rs"] {
        println!("cargo::rerun-if-changed={dir}/{file}");
    }
}
