//! Starting a guest, ending it, and what is said when it cannot be started.

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ferry_tests::lab::{self, LIMIT, Lab};
use ferry_tests::need::{self, Need};
use ferry_tests::time;
use ferry_tests::vm::Disk;
use serde_json::json;

const KVM: &[Need] = &[Need::Kvm];

#[test]
fn a_guest_runs_and_its_reset_ends_it() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let mut vm = lab.start(&lab.spec("disk=none milliseconds=1 seconds=1"))?;
        lab::finished(&vm)?;
        ensure!(vm.wait(LIMIT)?.code() == Some(3), "{}", vm.describe());
        Ok(())
    });
}

#[test]
fn a_triple_fault_ends_it_with_a_status_of_its_own() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let mut vm = lab.start(&lab.spec("disk=none seconds=1 end=fault"))?;
        ensure!(vm.wait(LIMIT)?.code() == Some(5), "{}", vm.describe());
        ensure!(vm.complaints().contains("triple fault"), "{}", vm.complaints());
        Ok(())
    });
}

#[test]
fn quit_and_signals_end_it() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let mut vm = lab.run(&lab.spec("disk=none"))?;
        let mut qmp = vm.qmp()?;
        qmp.call("quit", json!({}))?;
        ensure!(vm.wait(LIMIT)?.code() == Some(0), "{}", vm.describe());
        let told: Vec<_> = qmp.events().iter().map(|event| event["event"].as_str()).collect();
        ensure!(told == [Some("SHUTDOWN")], "QEMU's clients hear nothing else: {told:?}");
        for signal in [2, 15] {
            let mut vm = lab.run(&lab.spec("disk=none"))?;
            vm.signal(signal)?;
            ensure!(vm.wait(LIMIT)?.code() == Some(7), "signal {signal}: {}", vm.describe());
        }
        Ok(())
    });
}

#[test]
fn a_paused_guest_waits_for_cont_and_stops_when_told() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let mut spec = lab.spec("disk=none");
        spec.paused = true;
        let vm = lab.start(&spec)?;
        let mut qmp = vm.qmp()?;
        ensure!(lab::state(&mut qmp)? == "prelaunch");
        std::thread::sleep(Duration::from_millis(200));
        ensure!(vm.console.first_byte().is_none(), "it ran before cont");
        qmp.call("cont", json!({}))?;
        vm.console.wait_word("READY", LIMIT)?;
        qmp.call("stop", json!({}))?;
        // What was sent before the stop may still be on its way here.
        time::poll("silence after stop", LIMIT, || {
            let before = vm.console.dots().len();
            time::pause(Duration::from_millis(200));
            Ok((vm.console.dots().len() == before).then_some(()))
        })?;
        qmp.call("cont", json!({}))?;
        vm.console.wait_dot(LIMIT)?;
        Ok(())
    });
}

#[test]
fn system_reset_boots_it_again() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let vm = lab.run(&lab.spec("disk=none"))?;
        let mut qmp = vm.qmp()?;
        qmp.call("system_reset", json!({}))?;
        let ready = || {
            let lines = vm.console.lines();
            lines.iter().filter(|line| line.text.starts_with("READY")).count()
        };
        time::poll("a second boot", LIMIT, || Ok((ready() == 2).then_some(())))?;
        lab::finish(&vm)
    });
}

#[test]
fn the_serial_port_goes_to_a_file_or_a_socket() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (file, socket) = (lab.path("serial.txt"), lab.path("serial.sock"));
        let spec = lab.spec("disk=none seconds=1");
        let command = |serial: String| -> Result<Command> {
            let mut command = Command::new(lab.program()?);
            command.arg("run").arg("--kernel").arg(&spec.kernel).args(["--memory", "64M"]);
            command.args(["--cmdline", &spec.cmdline, "--serial", &serial]);
            Ok(command)
        };
        let status = command(format!("file={}", file.display()))?.status()?;
        ensure!(status.code() == Some(3), "{status}");
        ensure!(std::fs::read_to_string(&file)?.contains("DONE status=0"));

        let mut child = command(format!("socket={}", socket.display()))?.spawn()?;
        let mut stream =
            time::poll("the serial socket", LIMIT, || Ok(UnixStream::connect(&socket).ok()))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        ensure!(child.wait()?.code() == Some(3));
        ensure!(text.contains("DONE status=0"), "{text}");
        ensure!(!socket.exists(), "the serial socket's name is left behind");
        Ok(())
    });
}

#[test]
fn the_terminal_is_as_before_when_the_guest_has_ended() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let spec = lab.spec("disk=none seconds=1");
        let modes = lab.path("modes");
        let guest = format!(
            "{} run --kernel {} --memory 64M --cmdline '{}'",
            lab.program()?.display(),
            spec.kernel.display(),
            spec.cmdline
        );
        // `script` gives its command a terminal of its own.
        let inside = format!("stty -g >{0}; {guest}; stty -g >>{0}", modes.display());
        let output = Command::new("script").args(["-qec", &inside, "/dev/null"]).output()?;
        let modes = std::fs::read_to_string(&modes)?;
        let modes: Vec<&str> = modes.lines().collect();
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(said.contains("DONE status=0"), "{said}");
        ensure!(modes.len() == 2 && modes[0] == modes[1], "{modes:?}");
        Ok(())
    });
}

/// Runs ferry with these words; it must refuse with one line that contains `word`, and status 1 or 2.
fn refuses(lab: &Lab, words: &[&str], word: &str) -> Result<()> {
    let mut command = Command::new(lab.program()?);
    command.arg("run").args(words);
    let output = command.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let code = output.status.code().context("killed by a signal")?;
    ensure!(code == 1 || code == 2, "{words:?} ended with {code}: {said}");
    ensure!(said.contains(word), "{words:?} does not say {word}: {said}");
    ensure!(code == 2 || said.lines().count() == 1, "{words:?} says more than one line: {said}");
    Ok(())
}

#[test]
fn what_cannot_be_started_is_named_in_one_line() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let kernel = lab.spec("").kernel.display().to_string();
        let text = lab.path("notes.txt");
        std::fs::write(&text, "no kernel at all\n".repeat(1000))?;
        let text = text.display().to_string();
        refuses(&lab, &["--kernel", "absent.elf"], "absent.elf")?;
        refuses(&lab, &["--kernel", &text], "notes.txt")?;
        refuses(&lab, &["--kernel", &kernel, "--memory", "1M"], "memory")?;
        refuses(&lab, &["--kernel", &kernel, "--memory", "12 bananas"], "12 bananas")?;
        refuses(&lab, &["--kernel", &kernel, "--cpus", "0"], "0")?;
        refuses(&lab, &["--kernel", &kernel, "--disk", "path=absent.raw"], "absent.raw")?;
        refuses(&lab, &["--kernel", &kernel, "--disk", "nonsense"], "nonsense")?;
        refuses(&lab, &["--kernel", &kernel, "--initrd", "absent.cpio"], "absent.cpio")?;
        refuses(&lab, &["--kernel", &kernel, "--incoming", "carrier:pigeon"], "protocol")?;
        refuses(&lab, &["--kernel", &kernel, "--qmp", "/absent/folder/q.sock"], "q.sock")
    });
}

#[test]
fn a_disk_in_use_is_refused_by_name() {
    need::test(KVM, || {
        let lab = Lab::new()?;
        let (spec, path) = lab.with_disk("workload=verify disk_iops=100", 1)?;
        let vm = lab.run(&spec)?;
        let disk = format!("path={}", path.display());
        let kernel = spec.kernel.display().to_string();
        refuses(&lab, &["--kernel", &kernel, "--disk", &disk], "disk0.raw")?;
        let mut second = lab.spec("");
        let mut again = Disk::new("disk0", &path);
        again.read_only = true;
        second.disks.push(again);
        lab::finish(&vm)
    });
}
