//! A stock Linux guest: Debian's cloud kernel, a first file system and a small root file system.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{artifact, binary, command, cpio, image, lz4};

const META_PACKAGE: &str = "linux-image-cloud-amd64";
const GUEST_MODULES: [&str; 3] = ["virtio_pci", "virtio_blk", "pvpanic_mmio"];
const ROOT_BYTES: u64 = 192 << 20;

/// Debian's kernel and its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel as Debian ships it.
    pub bzimage: PathBuf,
    /// The same kernel unpacked, to be entered by PVH.
    pub vmlinux: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// Fetches Debian's current kernel once; needs no root rights.
    ///
    /// # Errors
    ///
    /// When the package cannot be found or fetched; the message says what to run.
    pub fn fetch() -> Result<Kernel> {
        let folder = artifact::cached("debian-kernel", "2", fetch_into)?;
        Ok(Kernel {
            bzimage: folder.join("bzImage"),
            vmlinux: folder.join("vmlinux"),
            modules: folder.join("modules"),
        })
    }

    /// The files of some modules and of all that they depend on, in the order to load them.
    ///
    /// # Errors
    ///
    /// When the kernel does not have one of them.
    pub fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let mut known = BTreeMap::new();
        for entry in fs::read_dir(&self.modules)? {
            let path = entry?.path();
            if let Some(name) = path.file_stem().and_then(|name| name.to_str()) {
                known.insert(name.replace('-', "_"), path);
            }
        }
        let mut ordered = Vec::new();
        for name in wanted {
            with_dependencies(name, &known, &mut ordered)?;
        }
        Ok(ordered)
    }
}

fn with_dependencies(
    name: &str,
    known: &BTreeMap<String, PathBuf>,
    ordered: &mut Vec<PathBuf>,
) -> Result<()> {
    let path = known.get(name).with_context(|| format!("the kernel has no module {name}"))?;
    if ordered.contains(path) {
        return Ok(());
    }
    let bytes = fs::read(path)?;
    let mark = b"\0depends=";
    let start = bytes.windows(mark.len()).position(|window| window == mark);
    if let Some(start) = start.map(|at| at + mark.len()) {
        let end = bytes[start..].iter().position(|&byte| byte == 0).unwrap_or(0);
        let names = String::from_utf8_lossy(&bytes[start..start + end]).into_owned();
        for name in names.split(',').filter(|name| !name.is_empty()) {
            with_dependencies(&name.replace('-', "_"), known, ordered)?;
        }
    }
    ordered.push(path.clone());
    Ok(())
}

/// The package that the meta package stands for today.
fn package_name() -> Result<String> {
    let said =
        command::output(command::program("apt-cache", "apt")?.args(["depends", META_PACKAGE]));
    let found = said.unwrap_or_default();
    let name = found.lines().find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    match name {
        Some(rest) => Ok(format!("linux-image-{rest}")),
        None => bail!("apt knows no {META_PACKAGE}: run `apt-get update` as root first"),
    }
}

fn fetch_into(folder: &Path) -> Result<()> {
    let package = package_name()?;
    let mut download = command::program("apt-get", "apt")?;
    command::output(download.current_dir(folder).args(["download", &package]))?;
    let archive = files_below(folder)?
        .into_iter()
        .find(|file| file.extension().is_some_and(|kind| kind == "deb"))
        .context("apt-get left no package behind")?;
    let unpacked = folder.join("unpacked");
    let mut dpkg = command::program("dpkg", "dpkg")?;
    command::output(dpkg.arg("-x").arg(&archive).arg(&unpacked))?;
    let modules = folder.join("modules");
    fs::create_dir(&modules)?;
    for file in files_below(&unpacked)? {
        let name = file.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.starts_with("vmlinuz") {
            fs::copy(&file, folder.join("bzImage"))?;
        } else if name.ends_with(".ko") {
            fs::copy(&file, modules.join(name))?;
        } else if let Some(plain) = name.strip_suffix(".xz").filter(|name| name.ends_with(".ko")) {
            let target = fs::File::create(modules.join(plain))?;
            let status = Command::new("xz").arg("-dc").arg(&file).stdout(target).status()?;
            anyhow::ensure!(status.success(), "xz cannot unpack {name}");
        }
    }
    let bzimage = fs::read(folder.join("bzImage")).context("the package has no kernel")?;
    let kernel = lz4::kernel_inside(&bzimage)?.context("the kernel is not packed with LZ4")?;
    fs::write(folder.join("vmlinux"), kernel)?;
    fs::remove_dir_all(unpacked)?;
    Ok(fs::remove_file(archive)?)
}

fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() && !path.is_symlink() {
            files.extend(files_below(&path)?);
        } else {
            files.push(path);
        }
    }
    Ok(files)
}

/// The statically linked busybox of this machine.
///
/// # Errors
///
/// When it is not installed.
pub fn busybox() -> Result<PathBuf> {
    command::find("busybox").context("busybox is missing: install busybox-static")
}

/// Adds modules to an archive, with the list that says in which order to load them.
///
/// # Errors
///
/// When the kernel does not have one of them.
pub fn add_modules(archive: &mut cpio::Archive, kernel: &Kernel, wanted: &[&str]) -> Result<()> {
    let mut order = String::new();
    for module in kernel.modules(wanted)? {
        let name = module.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        archive.copy(&module, &format!("modules/{name}"))?;
        order.push_str(name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
    Ok(())
}

/// This file: what it makes changes with it.
fn own_source() -> PathBuf {
    artifact::workspace().join("tests/src/linux.rs")
}

/// The guest's first file system: loads the disk's driver, then does what `ferry.do=` says.
///
/// # Errors
///
/// When busybox is missing.
pub fn initrd(kernel: &Kernel) -> Result<PathBuf> {
    let recipe = artifact::workspace().join("resources/linux/initrd-init.sh");
    let busybox = busybox()?;
    let key = artifact::fingerprint(&[&recipe, &busybox, &kernel.bzimage, &own_source()])?;
    let folder = artifact::cached("linux-initrd", &key, |folder| {
        let mut archive = cpio::Archive::new();
        archive.console();
        for place in ["proc", "sys", "newroot", "tmp"] {
            archive.folder(place);
        }
        archive.copy(&busybox, "bin/busybox")?;
        archive.copy(&recipe, "init")?;
        add_modules(&mut archive, kernel, &GUEST_MODULES)?;
        Ok(fs::write(folder.join("initrd.cpio"), archive.finish())?)
    })?;
    Ok(folder.join("initrd.cpio"))
}

/// The guest's root file system, packed (see [`image::unpack`]): busybox, an init, the journal writer.
///
/// # Errors
///
/// When a program is missing or fails.
pub fn packed_root() -> Result<PathBuf> {
    let recipe = artifact::workspace().join("resources/linux/root-init.sh");
    let (busybox, writer) = (busybox()?, binary::programs()?.journal_writer);
    let key = artifact::fingerprint(&[&recipe, &busybox, &writer, &own_source()])?;
    let folder = artifact::cached("linux-root", &key, |folder| {
        let root = folder.join("root");
        for place in ["bin", "sbin", "dev", "proc", "sys", "data"] {
            fs::create_dir_all(root.join(place))?;
        }
        fs::copy(&busybox, root.join("bin/busybox"))?;
        std::os::unix::fs::symlink("busybox", root.join("bin/sh"))?;
        fs::copy(&recipe, root.join("sbin/init"))?;
        fs::copy(&writer, root.join("sbin/journal-writer"))?;
        make_executable(&root.join("sbin/init"))?;
        image::ext4(&folder.join("root.ext4"), ROOT_BYTES, &root)?;
        image::pack(&folder.join("root.ext4"), &folder.join("root.packed"))?;
        fs::remove_file(folder.join("root.ext4"))?;
        Ok(fs::remove_dir_all(root)?)
    })?;
    Ok(folder.join("root.packed"))
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
}
