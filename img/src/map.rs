//! `map`: where the bytes of an image are.

use std::collections::BTreeMap;
use std::ops::Range;

use clap::Args;
use ferry_block::format::qcow2::Qcow2Driver;
use ferry_block::protocol::nbd::{NbdDriver, Status};
use ferry_block::{BlockNode, ChildRole, Extent, ExtentKind};

use crate::failure::{Failure, Result};
use crate::naming::Reading;
use crate::output::{Output, print};
use crate::qcow2::Places;
use crate::session::Session;
use crate::size;

/// Arguments of `map`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Reading,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// Start here
    #[arg(short, long = "start-offset")]
    start_offset: Option<String>,
    /// At most so many bytes
    #[arg(short = 'l', long = "max-length")]
    max_length: Option<String>,
    /// The image
    filename: String,
}

/// One line of the map.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    start: u64,
    /// Bytes.
    pub(crate) len: u64,
    depth: usize,
    present: bool,
    /// They read as zeroes.
    pub(crate) zero: bool,
    /// They have a place.
    pub(crate) data: bool,
    offset: Option<u64>,
    file: Option<String>,
}

impl Entry {
    /// Whether `next` goes on where this one ends.
    fn goes_on(&self, next: &Entry) -> bool {
        let place = match (self.offset, next.offset) {
            (Some(own), Some(next)) => own + self.len == next,
            (None, None) => true,
            _ => false,
        };
        place
            && (self.depth, self.present, self.zero, self.data, &self.file)
                == (next.depth, next.present, next.zero, next.data, &next.file)
    }

    fn json(&self) -> String {
        let Entry { start, len, depth, present, zero, data, .. } = self;
        let offset = self.offset.map_or_else(String::new, |at| format!(", \"offset\": {at}"));
        format!(
            "{{ \"start\": {start}, \"length\": {len}, \"depth\": {depth}, \
             \"present\": {present}, \"zero\": {zero}, \"data\": {data}{offset}}}"
        )
    }

    /// A row of the table, which only has what is data in a file.
    fn row(&self) -> Result<Option<String>> {
        if !self.data || self.zero {
            return Ok(None);
        }
        let Some(offset) = self.offset else {
            let text = "File contains external, encrypted or compressed clusters.";
            return Err(Failure::new(text));
        };
        let hex = |number: u64| match number {
            0 => "0".to_owned(),
            number => format!("{number:#x}"),
        };
        let (start, len, offset) = (hex(self.start), hex(self.len), hex(offset));
        let file = self.file.as_deref().unwrap_or_default();
        Ok(Some(format!("{start:<16}{len:<16}{offset:<16}{file}")))
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    let start = arguments.start_offset.as_deref().map_or(Ok(0), size::parse)?;
    let most = arguments.max_length.as_deref().map_or(Ok(u64::MAX), size::parse)?;
    Session::run(arguments.image.objects(), async |session| {
        let image = session.open(&arguments.image.request(&arguments.filename, None)).await?;
        let end = start.saturating_add(most).min(image.len());
        let mut lines = Lines::new(arguments.output)?;
        let (mut at, mut known) = (start, Known::default());
        while at < end {
            let entry = entry(&image.node, &mut known, at, end).await?;
            at += entry.len;
            lines.add(entry)?;
        }
        lines.finish()
    })
}

/// Entries on their way to standard output, those that go on joined.
struct Lines {
    output: Output,
    last: Option<Entry>,
    first: bool,
}

impl Lines {
    fn new(output: Output) -> Result<Lines> {
        if output == Output::Human {
            print(format!("{:<16}{:<16}{:<16}File", "Offset", "Length", "Mapped to"))?;
        }
        Ok(Lines { output, last: None, first: true })
    }

    fn add(&mut self, entry: Entry) -> Result<()> {
        match &mut self.last {
            Some(last) if last.goes_on(&entry) => last.len += entry.len,
            _ => {
                if let Some(last) = self.last.replace(entry) {
                    self.put(&last, ",")?;
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, entry: &Entry, end: &str) -> Result<()> {
        let open = if std::mem::replace(&mut self.first, false) { "[" } else { "" };
        match self.output {
            Output::Json => print(format!("{open}{}{end}", entry.json())),
            Output::Human => entry.row()?.map_or(Ok(()), print),
        }
    }

    fn finish(mut self) -> Result<u8> {
        match self.last.take() {
            Some(last) => self.put(&last, "]")?,
            None if self.output == Output::Json => print("[]")?,
            None => {}
        }
        Ok(0)
    }
}

/// What was found out of the images that were met, by node name.
#[derive(Default)]
pub(crate) struct Known {
    /// The tables of qcow2 images.
    places: BTreeMap<String, Places>,
    /// The extent that was asked for last. Clusters are looked up one by one, and to look at all that
    /// follow for each of them would take for ever.
    extents: BTreeMap<String, (Range<u64>, ExtentKind)>,
}

impl Known {
    /// What `node` has at the start of `range`, and how far at least that goes.
    async fn extent(&mut self, node: &BlockNode, range: Range<u64>) -> Result<Extent> {
        let (at, asked) = (range.start, range.end - range.start);
        if let Some((known, kind)) = self.extents.get(node.name())
            && known.contains(&at)
        {
            return Ok(Extent { kind: *kind, len: asked.min(known.end - at) });
        }
        let extent = node.map(range).await?;
        self.extents.insert(node.name().to_owned(), (at..at + extent.len, extent.kind));
        Ok(extent)
    }

    /// Where the file of `node` has the byte `at`, and up to where that is known.
    async fn find(&mut self, node: &BlockNode, at: u64) -> Result<(Option<u64>, u64)> {
        let Some(driver) = node.driver::<Qcow2Driver>() else { return Ok((Some(at), u64::MAX)) };
        if !self.places.contains_key(node.name()) {
            let places = Places::load(driver.file(), driver.header()).await?;
            self.places.insert(node.name().to_owned(), places);
        }
        match self.places.get_mut(node.name()) {
            Some(places) => places.find(at).await,
            None => Ok((None, u64::MAX)),
        }
    }

    /// Whether what `node` has at `at` of its file is a hole there, and up to which byte of the disk;
    /// only asked of images that have many.
    async fn hole(&self, node: &BlockNode, host: u64, len: u64) -> Result<Option<(bool, u64)>> {
        let Some(driver) = node.driver::<Qcow2Driver>() else { return Ok(None) };
        let file = data_file(node).unwrap_or_else(|| driver.file().node());
        if !self.places.get(node.name()).is_some_and(Places::is_hollow) || host >= file.len() {
            return Ok(None);
        }
        let found = file.map(host..file.len().min(host + len)).await?;
        Ok(Some((found.kind == ExtentKind::Zero, found.len)))
    }
}

/// What the bytes from `at` are, in the first image of the chain that says so.
pub(crate) async fn entry(top: &BlockNode, known: &mut Known, at: u64, end: u64) -> Result<Entry> {
    let mut node = top.skip_filters();
    if let Some(status) = chosen_status(&node, at..end).await? {
        return Ok(of_status(&node, at, status));
    }
    let (mut end, mut depth) = (end, 0);
    loop {
        let extent = known.extent(&node, at..end).await?;
        end = at + extent.len;
        let below = node.backing().map(|below| below.skip_filters());
        // Past the end of a shorter image below there is nothing but zeroes.
        let below = below.filter(|below| extent.kind == ExtentKind::Absent && at < below.len());
        if let Some(below) = below {
            end = end.min(below.len());
            node = below;
            depth += 1;
            continue;
        }
        let (offset, placed) = match extent.kind {
            ExtentKind::Absent => (None, end),
            _ => known.find(&node, at).await?,
        };
        let (mut len, mut zero) = (end.min(placed) - at, extent.kind != ExtentKind::Data);
        if let (false, Some(host)) = (zero, offset)
            && let Some((hole, until)) = known.hole(&node, host, len).await?
        {
            (zero, len) = (hole, until);
        }
        return Ok(Entry {
            start: at,
            len,
            depth,
            present: extent.kind != ExtentKind::Absent,
            zero,
            data: extent.kind == ExtentKind::Data,
            offset,
            file: data_file(&node).unwrap_or(node).filename(),
        });
    }
}

/// Where an image keeps its data, if that is not its own file.
fn data_file(node: &BlockNode) -> Option<BlockNode> {
    let mut children = node.children().into_iter();
    children.find(|edge| edge.role() == ChildRole::Data).map(|edge| edge.node())
}

/// What the metadata context says that the user wants to see instead of the allocation.
async fn chosen_status(node: &BlockNode, range: Range<u64>) -> Result<Option<Status>> {
    match node.driver::<NbdDriver>() {
        Some(driver) => Ok(driver.chosen_status(range).await?),
        None => Ok(None),
    }
}

/// Such a status as `qemu-img` shows it: scripts look for `"data": false` to find what is dirty.
fn of_status(node: &BlockNode, at: u64, status: Status) -> Entry {
    let Status { hole, zero, len } = status;
    Entry {
        start: at,
        len,
        depth: 0,
        present: !hole || zero,
        zero,
        data: !hole,
        offset: (!hole || zero).then_some(at),
        file: node.filename(),
    }
}
