//! Images that an NBD server has.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its programs has failed")]

use std::fs;
use std::os::unix::fs::FileExt;
use std::process::{Child, Command};
use std::time::Duration;

const OURS: &str = env!("CARGO_BIN_EXE_ferry-img");

/// A `qemu-nbd` that serves one image until it is dropped.
struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

fn serve(folder: &std::path::Path, socket: &str, image: &str, writable: bool) -> Option<Server> {
    let path = folder.join(socket);
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "raw", "-t", "-x", "disk", "-k"]).arg(&path);
    if !writable {
        command.arg("-r");
    }
    let Ok(child) = command.arg(folder.join(image)).spawn() else {
        eprintln!("skipped: qemu-nbd is not installed");
        return None;
    };
    let server = Server(child);
    while !path.exists() {
        std::thread::sleep(Duration::from_millis(10));
    }
    Some(server)
}

fn run(folder: &std::path::Path, program: &str, arguments: &str) -> std::process::Output {
    let arguments = arguments.split_whitespace();
    Command::new(program).args(arguments).current_dir(folder).output().unwrap()
}

#[test]
fn images_behind_a_server_are_read_compared_and_written() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let file = fs::File::create(folder.join("a.raw")).unwrap();
    file.set_len(8 << 20).unwrap();
    file.write_all_at(&[7; 70_000], 1 << 20).unwrap();
    fs::File::create(folder.join("b.raw")).unwrap().set_len(8 << 20).unwrap();
    let Some(source) = serve(folder, "a.sock", "a.raw", false) else { return };
    let Some(target) = serve(folder, "b.sock", "b.raw", true) else { return };
    let a = "nbd+unix:///disk?socket=a.sock";
    let ours = |arguments: String| {
        let output = run(folder, OURS, &arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let json = |program: &str| {
        let output = run(folder, program, &format!("map -f raw --output json {a}")).stdout;
        serde_json::from_slice::<serde_json::Value>(&output).unwrap()
    };
    assert_eq!(json(OURS), json("qemu-img"));
    assert!(ours(format!("info {a}")).contains("virtual size: 8 MiB (8388608 bytes)"));
    ours(format!("convert -O qcow2 {a} c.qcow2"));
    assert_eq!(ours(format!("compare {a} c.qcow2")), "Images are identical.\n");
    ours(format!("convert -n -O raw {a} nbd+unix:///disk?socket=b.sock"));
    let create = format!("create -q -f qcow2 -b {a} -F raw top.qcow2");
    assert!(run(folder, "qemu-img", &create).status.success());
    assert_eq!(ours("compare a.raw top.qcow2".into()), "Images are identical.\n");
    assert_eq!(
        ours("compare a.raw nbd:unix:a.sock:exportname=disk".into()),
        "Images are identical.\n"
    );
    assert!(fs::read(folder.join("a.raw")).unwrap() == fs::read(folder.join("b.raw")).unwrap());
    // A new image in an export: it is as long as it is.
    let b = "nbd+unix:///disk?socket=b.sock";
    ours(format!("create -q -f qcow2 {b} 4M"));
    ours(format!("convert -n -f raw -O qcow2 c.qcow2 {b}"));
    drop((source, target));
    let checked = run(folder, "qemu-img", "compare -f raw -F qcow2 c.qcow2 b.raw");
    assert!(checked.status.success(), "{checked:?}");
    let gone = run(folder, OURS, &format!("info {a}"));
    assert_eq!(gone.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&gone.stderr).contains("a.sock"), "{gone:?}");
}

/// Wherever there is nothing in the source there must be nothing in the target, whatever was there.
#[test]
fn a_copy_into_an_export_leaves_nothing_of_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let len = 4_usize << 20;
    let source = fs::File::create(folder.join("a.raw")).unwrap();
    source.set_len(len as u64).unwrap();
    source.write_all_at(&[7; 70_000], 1 << 20).unwrap();
    let expected = fs::read(folder.join("a.raw")).unwrap();
    let old = || fs::write(folder.join("b.raw"), vec![9; len]).unwrap();
    old();
    let Some(_server) = serve(folder, "b.sock", "b.raw", true) else { return };
    let b = "nbd+unix:///disk?socket=b.sock";
    let ours = |arguments: String| {
        old();
        let output = run(folder, OURS, &arguments);
        assert!(output.status.success(), "{arguments}: {output:?}");
    };
    ours(format!("convert -f raw -O raw a.raw {b}"));
    assert!(fs::read(folder.join("b.raw")).unwrap() == expected);
    ours(format!("dd -f raw -O raw bs=64k if=a.raw of={b}"));
    assert!(fs::read(folder.join("b.raw")).unwrap() == expected);
    fs::write(folder.join("c.raw"), vec![9; len]).unwrap();
    ours("convert -f raw -O raw a.raw json:{\"driver\":\"file\",\"filename\":\"c.raw\"}".into());
    assert!(fs::read(folder.join("c.raw")).unwrap() == expected);
    source.set_len(1 << 20).unwrap();
    ours(format!("convert -f raw -O qcow2 -o preallocation=metadata a.raw {b}"));
    let compared = run(folder, OURS, &format!("compare -f raw -F qcow2 a.raw {b}"));
    assert!(compared.status.success(), "{compared:?}");
}
