//! Raw images, with `qemu-img` as the judge: the same arguments must give the same JSON, the same
//! exit status and the same bytes.

#![expect(clippy::unwrap_used, reason = "a test that cannot run its programs has failed")]

mod rig;

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Output};

use rig::{OURS, Rig};

impl Rig {
    /// A folder with a sparse image `a.raw` of 5 MiB and a bit.
    fn new() -> Option<Rig> {
        let rig = Rig::empty()?;
        let file = fs::File::create(rig.path("a.raw")).unwrap();
        file.set_len((5 << 20) + 512).unwrap();
        file.write_all_at(&[7; 70_000], 1 << 20).unwrap();
        file.write_all_at(&[0; 8192], 3 << 20).unwrap();
        file.write_all_at(&[9; 512], 5 << 20).unwrap();
        Some(rig)
    }

    fn ours(&self, arguments: &str) -> Output {
        self.run(OURS, arguments)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn blocks(&self, name: &str) -> u64 {
        fs::metadata(self.path(name)).unwrap().blocks() * 512
    }
}

#[test]
fn info_and_map_say_what_qemu_img_says() {
    let Some(rig) = Rig::new() else { return };
    for arguments in [
        "info --output json a.raw",
        "info -f raw --output=json a.raw",
        "info -U --backing-chain --output json a.raw",
        "info --image-opts --output json driver=raw,file.driver=file,file.filename=a.raw",
        "info --image-opts --output json driver=file,filename=a.raw",
        "map --output json a.raw",
        "map -f raw --output json -s 1M -l 2M a.raw",
        "map --output json --start-offset=4M a.raw",
    ] {
        rig.same_json(arguments);
    }
    for arguments in ["info a.raw", "map a.raw", "info -f raw missing.raw", "info -f nosuch a.raw"]
    {
        rig.same_text(arguments);
    }
}

#[test]
fn new_images_and_new_lengths_are_what_qemu_img_makes() {
    let Some(rig) = Rig::new() else { return };
    rig.same_text("create -f raw n.raw 3M");
    rig.same_text("create n.raw 1.5k");
    assert_eq!(rig.bytes("n.raw").len(), 1536);
    rig.same_text("create -q -f raw -o preallocation=falloc n.raw 1M");
    assert_eq!(rig.ours("create -q -o preallocation=full n.raw 1M").status.code(), Some(0));
    assert!(rig.blocks("n.raw") >= 1 << 20 && rig.bytes("n.raw") == vec![0; 1 << 20]);
    // What is full was written, where falloc only takes the space.
    rig.same_text("map --output json -f raw n.raw");
    let is_written = || {
        !String::from_utf8_lossy(&rig.ours("map --output json n.raw").stdout)
            .contains("\"data\": false")
    };
    assert!(is_written());
    rig.ours("resize -q -f raw --preallocation=full n.raw 1536k");
    assert!(is_written());
    for (arguments, len) in [
        ("resize -f raw n.raw 2M", 2 << 20),
        ("resize -f raw n.raw +1M", 3 << 20),
        ("resize -q -f raw --preallocation=falloc n.raw 4M", 4 << 20),
        ("resize -f raw --shrink n.raw -3M", 1 << 20),
        ("resize -f raw --shrink n.raw 0", 1 << 20),
        ("resize -f raw --preallocation=metadata n.raw 2M", 1 << 20),
        ("resize -f raw n.raw 512", 1 << 20),
        ("resize -f raw n.raw -5M", 1 << 20),
    ] {
        let ours = rig.ours(arguments);
        assert_eq!(rig.bytes("n.raw").len(), len, "{arguments}: {ours:?}");
    }
    for arguments in ["create -f raw", "create -f nosuch x 1M", "create -f raw x", "resize a.raw"] {
        let ours = rig.ours(arguments);
        assert!(!ours.status.success(), "{arguments}");
    }
}

#[test]
fn copies_are_the_same_bytes_and_keep_the_holes() {
    let Some(rig) = Rig::new() else { return };
    let all = rig.bytes("a.raw");
    for arguments in [
        "convert a.raw b.raw",
        "convert -f raw -O raw -p a.raw b.raw",
        "convert -m 16 -W a.raw b.raw",
        "convert -m 1 -T none -t none a.raw b.raw",
        "convert -S 64k a.raw b.raw",
        "convert --salvage -r 1G a.raw b.raw",
    ] {
        let ours = rig.ours(arguments);
        assert!(ours.status.success(), "{arguments}: {ours:?}");
        assert!(rig.bytes("b.raw") == all, "{arguments}");
        assert!(rig.blocks("b.raw") <= 256 << 10, "{arguments}: {}", rig.blocks("b.raw"));
    }
    assert!(rig.ours("convert -S 0 a.raw b.raw").status.success());
    assert!(rig.bytes("b.raw") == all && rig.blocks("b.raw") >= 5 << 20);
    assert!(rig.ours("convert a.raw a.raw c.raw").status.success());
    assert!(rig.bytes("c.raw") == [all.clone(), all.clone()].concat());
    // A target that is there keeps its length, and what was in it is gone.
    fs::write(rig.path("d.raw"), vec![0xff; 6 << 20]).unwrap();
    assert!(rig.ours("convert -n -O raw a.raw d.raw").status.success());
    assert!(
        rig.bytes("d.raw")[..all.len()] == all
            && rig.bytes("d.raw")[all.len()..] == vec![0xff; (1 << 20) - 512]
    );
    for arguments in [
        "convert a.raw",
        "convert -m 17 a.raw x.raw",
        "convert --target-is-zero a.raw x.raw",
        "convert -c -O raw a.raw x.raw",
        "convert -t nosuch a.raw x.raw",
        "convert missing.raw x.raw",
    ] {
        rig.both(arguments);
    }
}

#[test]
fn copies_between_files_in_memory_are_the_same_bytes() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let content: Vec<u8> = (0..9 << 20).map(|at: u32| (at / 1021).to_le_bytes()[0]).collect();
    fs::write(folder.path().join("a"), &content).unwrap();
    for arguments in ["-f raw -O qcow2 a b", "-f qcow2 -O raw b c", "-f raw -O raw -m 16 -W a c"] {
        let mut convert = Command::new(OURS);
        convert.arg("convert").args(arguments.split(' ')).current_dir(folder.path());
        assert!(convert.status().unwrap().success(), "{arguments}");
        let bytes = fs::read(folder.path().join("c")).unwrap_or(content.clone());
        assert!(bytes == content, "{arguments}");
    }
}

#[test]
fn parts_are_copied_as_dd_does() {
    let Some(rig) = Rig::new() else { return };
    let all = rig.bytes("a.raw");
    // With both, qemu-img counts from the start of the image; dd, and ours, from where it begins.
    for (operands, range, alike) in [
        ("bs=64k skip=15 count=4", 15 * 65_536..19 * 65_536, false),
        ("bs=1M", 0..all.len(), true),
        ("count=3", 0..1536, true),
        ("bs=1M skip=5", 5 << 20..all.len(), true),
    ] {
        let programs = if alike { vec![OURS, "qemu-img"] } else { vec![OURS] };
        for program in programs {
            let output = rig.run(program, &format!("dd -f raw if=a.raw of=o.raw {operands}"));
            assert!(output.status.success(), "{operands}: {output:?}");
            assert!(rig.bytes("o.raw") == all[range.clone()], "{program} {operands}");
        }
    }
    for program in [OURS, "qemu-img"] {
        let output = rig.run(program, "dd -f raw if=a.raw of=o.raw bs=1G skip=1");
        assert!(output.status.success() && rig.bytes("o.raw").is_empty(), "{output:?}");
        assert!(String::from_utf8_lossy(&output.stderr).contains("cannot skip"), "{output:?}");
    }
}

#[test]
fn comparisons_end_as_those_of_qemu_img() {
    let Some(rig) = Rig::new() else { return };
    let write = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = rig.bytes("a.raw");
        change(&mut bytes);
        fs::write(rig.path(name), bytes).unwrap();
    };
    write("same.raw", &|_| {});
    write("other.raw", &|bytes| bytes[(1 << 20) + 5000] = 1);
    write("zero.raw", &|bytes| bytes[(4 << 20) + 1000] = 1);
    write("long.raw", &|bytes| bytes.extend([0; 4096]));
    write("longer.raw", &|bytes| bytes.extend([5; 4096]));
    for second in ["same", "other", "zero", "long", "longer"] {
        rig.same_text(&format!("compare -f raw -F raw a.raw {second}.raw"));
        rig.same_text(&format!("compare -f raw -F raw {second}.raw a.raw"));
    }
    rig.same_text("compare -s -f raw -F raw a.raw long.raw");
    rig.same_text("compare -q -f raw -F raw a.raw other.raw");
    rig.both("compare a.raw missing.raw");
    rig.both("compare -T nosuch a.raw same.raw");
}

#[test]
fn a_format_that_is_not_understood_is_never_taken_for_raw() {
    let Some(rig) = Rig::new() else { return };
    fs::write(rig.path("odd.img"), [b"KDMV".as_slice(), &[0; 2048]].concat()).unwrap();
    let output = rig.ours("info odd.img");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && text.contains("'vmdk' is not supported"), "{text}");
    assert!(rig.ours("info -f raw odd.img").status.success());
    let output = rig.ours("resize a.raw 6M");
    assert!(String::from_utf8_lossy(&output.stderr).contains("Specify the 'raw' format"));
}

#[test]
fn a_measurement_tells_how_long_it_took() {
    let Some(rig) = Rig::new() else { return };
    let [reads, writes] =
        ["bench -c 200 -f raw a.raw", "bench -w -c 50 -s 64k -S 128k -f raw a.raw"];
    for arguments in [reads, writes, "bench -c 50 -i threads -f raw a.raw"] {
        let output = rig.ours(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        let theirs = rig.run("qemu-img", arguments);
        let first = |text: &str| text.lines().next().map(str::to_owned);
        assert_eq!(first(&text), first(&String::from_utf8_lossy(&theirs.stdout)));
        assert!(text.contains("Run completed in "), "{text}");
    }
    rig.both("bench --flush-interval 5 -f raw a.raw");
}

#[test]
fn writes_through_the_cache_are_measured_until_they_are_durable() {
    let Some(rig) = Rig::new() else { return };
    if Command::new("nbdkit").arg("--version").output().is_err() {
        eprintln!("skipped: nbdkit is not installed");
        return;
    }
    for (mode, durable) in [("writeback", 0), ("writethrough", 3)] {
        let bench = format!("{OURS} bench -w -t {mode} -c 3 -d 1 -f raw \"$uri\"");
        let mut nbdkit = Command::new("nbdkit");
        nbdkit.args(["-U", "-", "--filter=log", "memory", "1M", "logfile=log", "--run", &bench]);
        let output = nbdkit.current_dir(rig.0.path()).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let log = String::from_utf8(rig.bytes("log")).unwrap();
        assert_eq!(log.matches("fua=1").count(), durable, "{log}");
    }
}

#[test]
fn what_another_program_writes_to_is_not_touched() {
    let Some(rig) = Rig::new() else { return };
    let path = rig.path("a.raw");
    let holder = Holder::start(&path);
    let before = rig.bytes("a.raw");
    for arguments in ["create -f raw a.raw 1M", "resize -f raw a.raw 1M", "convert a.raw b.raw"] {
        let output = rig.ours(arguments);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && text.contains("lock"), "{arguments}: {text}");
    }
    assert!(rig.bytes("a.raw") == before);
    rig.same_json("info -U --output json a.raw");
    // A guest goes on in an image of its own on top of the one that it uses now.
    rig.same_text("create -q -f qcow2 -b a.raw -F raw n.qcow2");
    drop(holder);
}

/// A qemu-io that has an image open for writing until it is dropped.
struct Holder(std::process::Child);

impl Holder {
    fn start(path: &Path) -> Holder {
        use std::io::{BufRead, BufReader, Write};
        let mut child = Command::new("qemu-io")
            .args(["-f", "raw"])
            .arg(path)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.as_mut().unwrap().write_all(b"length\n").unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Holder(child)
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[test]
fn lengths_are_whole_sectors_and_nothing_at_the_end_is_lost() {
    let Some(rig) = Rig::new() else { return };
    fs::write(rig.path("odd.raw"), [7; 1000]).unwrap();
    for arguments in [
        "info -f raw --output json odd.raw",
        "map -f raw --output json odd.raw",
        "measure -f raw -O raw --output json odd.raw",
    ] {
        rig.same_json(arguments);
    }
    rig.same_text("create -f raw n.raw 1000");
    assert_eq!(rig.bytes("n.raw").len(), 1024);
    for arguments in ["convert -f raw -O raw odd.raw c.raw", "dd -f raw if=odd.raw of=c.raw bs=100"]
    {
        assert_eq!(rig.ours(arguments).status.code(), Some(0), "{arguments}");
        assert_eq!(rig.bytes("c.raw"), [&[7; 1000][..], &[0; 24]].concat(), "{arguments}");
        rig.same_text("compare -f raw -F raw odd.raw c.raw");
    }
}

#[test]
fn hints_for_the_file_system_are_taken() {
    let Some(rig) = Rig::new() else { return };
    for arguments in [
        "create -f raw -o extent_size_hint=2M n.raw 3M",
        "create -f qcow2 -o extent_size_hint=2M n.qcow2 3M",
    ] {
        rig.same_text(arguments);
    }
    rig.both("create -f raw -o extent_size_hint=8G n.raw 3M");
}
