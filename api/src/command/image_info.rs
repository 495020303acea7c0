//! Images: what `query-block` and `query-named-block-nodes` tell of the content of a node.

use super::SnapshotInfo;
use super::create::Qcow2CompressionType;
use crate::schema::{enumeration, object, union};

object! {
    /// An image.
    #[derive(Default)]
    pub struct ImageInfo {
        /// Its file or address.
        filename: String = "filename",
        /// Its driver.
        format: String = "format",
        /// Whether it was not closed in order.
        dirty_flag: Option<bool> = "dirty-flag",
        /// Bytes it takes up on the host.
        actual_size: Option<i64> = "actual-size",
        /// Its length in bytes, as the guest sees it.
        virtual_size: i64 = "virtual-size",
        /// Bytes that it allocates at a time.
        cluster_size: Option<i64> = "cluster-size",
        /// The image below it, by the name it gives.
        backing_filename: Option<String> = "backing-filename",
        /// The image below it, seen from the working directory.
        full_backing_filename: Option<String> = "full-backing-filename",
        /// Driver of the image below it, by what it says.
        backing_filename_format: Option<String> = "backing-filename-format",
        /// The snapshots inside it, if there are any.
        snapshots: Option<Vec<SnapshotInfo>> = "snapshots",
        /// The image below it, unless `flat` was asked for.
        backing_image: Option<Box<ImageInfo>> = "backing-image",
        /// What only images of its format have.
        format_specific: Option<ImageInfoSpecific> = "format-specific",
    }
}

union! {
    /// What only images of one format have.
    pub struct ImageInfoSpecific {
        ..
        /// The format with its facts.
        kind: ImageInfoSpecificKind = "type",
    }
    /// The formats that have something to tell.
    pub enum ImageInfoSpecificKind {
        /// qcow2.
        Qcow2(ImageInfoSpecificQcow2Data) = "qcow2",
    }
}

object! {
    /// `data` of a qcow2 image.
    pub struct ImageInfoSpecificQcow2Data {
        /// The facts.
        data: ImageInfoSpecificQcow2 = "data",
    }
}

object! {
    /// Facts of a qcow2 image.
    pub struct ImageInfoSpecificQcow2 {
        /// The oldest program that understands it: 0.10 (version 2) or 1.1 (version 3).
        compat: String = "compat",
        /// Name of the file with the guest's data, if that is not the image itself.
        data_file: Option<String> = "data-file",
        /// Whether that file can be read without the image.
        data_file_raw: Option<bool> = "data-file-raw",
        /// Whether its clusters are divided; only in version 3.
        extended_l2: Option<bool> = "extended-l2",
        /// Whether refcounts may be stale while it is in use; only in version 3.
        lazy_refcounts: Option<bool> = "lazy-refcounts",
        /// Whether it is known to be damaged; only in version 3.
        corrupt: Option<bool> = "corrupt",
        /// Bits of a refcount.
        refcount_bits: i64 = "refcount-bits",
        /// The dirty bitmaps in it, if there are any, as they were stored last.
        bitmaps: Option<Vec<Qcow2BitmapInfo>> = "bitmaps",
        /// How clusters are compressed.
        compression_type: Qcow2CompressionType = "compression-type",
    }
}

object! {
    /// A dirty bitmap in a qcow2 image.
    pub struct Qcow2BitmapInfo {
        /// Its name.
        name: String = "name",
        /// Bytes per bit.
        granularity: u32 = "granularity",
        /// What else is said of it.
        flags: Vec<Qcow2BitmapInfoFlags> = "flags",
    }
}

enumeration! {
    /// What is said of a dirty bitmap in a qcow2 image.
    pub enum Qcow2BitmapInfoFlags {
        /// Who used it last has not stored it: it must not be trusted.
        InUse = "in-use",
        /// It records writes.
        Auto = "auto",
    }
}
