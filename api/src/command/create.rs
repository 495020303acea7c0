//! Making images: `blockdev-create`.

use super::BlockdevRef;
use crate::schema::{enumeration, object, union};

object! {
    /// Arguments of `blockdev-create`.
    pub struct BlockdevCreate {
        /// Name of the job.
        job_id: String = "job-id",
        /// What to make.
        options: BlockdevCreateOptions = "options",
    }
}

union! {
    /// What to make.
    pub struct BlockdevCreateOptions {
        ..
        /// The driver and its own options.
        driver: BlockdevCreateDriver = "driver",
    }
    /// A driver with its options.
    pub enum BlockdevCreateDriver {
        /// A file of the host.
        File(BlockdevCreateFile) = "file",
        /// A qcow2 image on a node that exists.
        Qcow2(Box<BlockdevCreateQcow2>) = "qcow2",
    }
}

enumeration! {
    /// What is made ready in advance.
    pub enum PreallocMode {
        /// Nothing.
        Off = "off",
        /// Metadata.
        Metadata = "metadata",
        /// Space is reserved.
        Falloc = "falloc",
        /// Zeroes are written.
        Full = "full",
    }
}

object! {
    /// A file of the host.
    pub struct BlockdevCreateFile {
        /// Its path.
        filename: String = "filename",
        /// Its length in bytes.
        size: u64 = "size",
        /// What is made ready in advance (default off).
        preallocation: Option<PreallocMode> = "preallocation",
        /// Bytes that the file system is to allocate at once, where it can be told (default 1 MiB).
        extent_size_hint: Option<u64> = "extent-size-hint",
    }
}

enumeration! {
    /// Versions of qcow2.
    pub enum BlockdevQcow2Version {
        /// `compat=0.10`.
        V2 = "v2",
        /// `compat=1.1`.
        V3 = "v3",
    }
}

enumeration! {
    /// How clusters are compressed.
    pub enum Qcow2CompressionType {
        /// deflate.
        Zlib = "zlib",
        /// Zstandard.
        Zstd = "zstd",
    }
}

enumeration! {
    /// Drivers that a backing file may have.
    pub enum BackingFormat {
        /// A qcow2 image.
        Qcow2 = "qcow2",
        /// An image without a format.
        Raw = "raw",
    }
}

object! {
    /// A qcow2 image.
    pub struct BlockdevCreateQcow2 {
        /// The node to make it on.
        file: BlockdevRef = "file",
        /// The node for guest data, if it is not to be in the image.
        data_file: Option<BlockdevRef> = "data-file",
        /// Whether the data file is a valid raw image by itself (default false).
        data_file_raw: Option<bool> = "data-file-raw",
        /// Whether clusters are allocated in parts (default false).
        extended_l2: Option<bool> = "extended-l2",
        /// Length of the disk in bytes.
        size: u64 = "size",
        /// Version (default v3).
        version: Option<BlockdevQcow2Version> = "version",
        /// Name of the backing file.
        backing_file: Option<String> = "backing-file",
        /// Driver of the backing file.
        backing_fmt: Option<BackingFormat> = "backing-fmt",
        /// Bytes of a cluster (default 64 KiB).
        cluster_size: Option<u64> = "cluster-size",
        /// What is made ready in advance (default off).
        preallocation: Option<PreallocMode> = "preallocation",
        /// Whether reference counts are written late (default false).
        lazy_refcounts: Option<bool> = "lazy-refcounts",
        /// Bits of a reference count (default 16).
        refcount_bits: Option<i64> = "refcount-bits",
        /// How clusters are compressed (default zlib).
        compression_type: Option<Qcow2CompressionType> = "compression-type",
    }
}
