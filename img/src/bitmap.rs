//! `bitmap`: the dirty bitmaps in an image.

use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use ferry_block::bitmap::{BitmapState, DirtyBitmap};
use ferry_block::format::qcow2::bitmap::{
    BitmapEntry, ToStore, load_bitmap, load_directory, store_bitmaps,
};
use ferry_block::format::qcow2::header::Header;
use ferry_block::{Edge, Error};

use crate::failure::{Failure, Result};
use crate::naming::Naming;
use crate::session::{Access, Request, Session};
use crate::size;

/// Arguments of `bitmap`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    verbs: Verbs,
    /// The image that has the bitmap to merge (default: the same)
    #[arg(short = 'b', long)]
    source_file: Option<String>,
    /// Format of that image
    #[arg(short = 'F', long)]
    source_format: Option<String>,
    /// Bytes of a granule of a new bitmap
    #[arg(short, long)]
    granularity: Option<String>,
    #[command(flatten)]
    image: Naming,
    /// The image
    filename: String,
    /// The bitmap
    bitmap: String,
}

/// What to do, in the order of the command line.
#[derive(Debug, Default)]
struct Verbs(Vec<Verb>);

#[derive(Clone, Debug)]
enum Verb {
    Add,
    Remove,
    Clear,
    Enable,
    Disable,
    Merge(String),
}

impl Verb {
    fn name(&self) -> &'static str {
        match self {
            Verb::Add => "add",
            Verb::Remove => "remove",
            Verb::Clear => "clear",
            Verb::Enable => "enable",
            Verb::Disable => "disable",
            Verb::Merge(_) => "merge",
        }
    }
}

/// The switches, with what they say of themselves.
const SWITCHES: [(Verb, &str); 5] = [
    (Verb::Add, "Make a new bitmap"),
    (Verb::Remove, "Take the bitmap away"),
    (Verb::Clear, "Forget what is dirty"),
    (Verb::Enable, "Record writes from now on"),
    (Verb::Disable, "Record writes no longer"),
];

impl Args for Verbs {
    fn augment_args(command: Command) -> Command {
        let switch = |(verb, help): &(Verb, &'static str)| {
            let arg = Arg::new(verb.name()).long(verb.name()).help(*help);
            // Every time that it is there is told of, with its place.
            arg.num_args(0).default_missing_value("").action(ArgAction::Append)
        };
        let merge = Arg::new("merge")
            .long("merge")
            .value_name("SOURCE")
            .help("Add what is dirty in another bitmap")
            .action(ArgAction::Append);
        command.args(SWITCHES.iter().map(switch)).arg(merge)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Verbs::augment_args(command)
    }
}

impl FromArgMatches for Verbs {
    fn from_arg_matches(matches: &ArgMatches) -> std::result::Result<Verbs, clap::Error> {
        let mut found: Vec<(usize, Verb)> = Vec::new();
        for (verb, _) in SWITCHES {
            let places = matches.indices_of(verb.name()).into_iter().flatten();
            found.extend(places.map(|place| (place, verb.clone())));
        }
        let sources = matches.get_many::<String>("merge").into_iter().flatten();
        let places = matches.indices_of("merge").into_iter().flatten();
        found.extend(places.zip(sources).map(|(place, name)| (place, Verb::Merge(name.clone()))));
        found.sort_by_key(|(place, _)| *place);
        Ok(Verbs(found.into_iter().map(|(_, verb)| verb).collect()))
    }

    fn update_from_arg_matches(
        &mut self,
        matches: &ArgMatches,
    ) -> std::result::Result<(), clap::Error> {
        *self = Verbs::from_arg_matches(matches)?;
        Ok(())
    }
}

/// The bitmaps of an image: those that were looked at with their bits.
struct Bitmaps {
    header: Header,
    file: Edge,
    list: Vec<Stored>,
}

struct Stored {
    entry: BitmapEntry,
    bits: Option<DirtyBitmap>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    if arguments.verbs.0.is_empty() {
        return Err(Failure::new(
            "Need at least one of --add, --remove, --clear, --enable, --disable, or --merge",
        ));
    }
    check(arguments)?;
    Session::run(&arguments.image.objects, async |session| {
        let request = arguments.image.request(&arguments.filename, Access::Resize);
        let (format, file) = session.open_container(&request).await?;
        if format != "qcow2" {
            return Err(Failure::new(format!("images of format '{format}' have no bitmaps")));
        }
        let mut bitmaps = Bitmaps::load(file.root.edge().clone()).await?;
        for verb in &arguments.verbs.0 {
            let (what, name) = (verb.name(), &arguments.bitmap);
            bitmaps.carry_out(session, arguments, verb).await.map_err(|failure| {
                failure.context(format!("Operation {what} on bitmap {name} failed"))
            })?;
        }
        bitmaps.store().await?;
        Ok(0)
    })
}

/// Refuses arguments that say something of what is not done.
fn check(arguments: &Arguments) -> Result<()> {
    let does = |wanted: fn(&Verb) -> bool| arguments.verbs.0.iter().any(wanted);
    let refuse = |text: &str| Err(Failure::new(text));
    if arguments.granularity.is_some() && !does(|verb| matches!(verb, Verb::Add)) {
        return refuse("granularity only supported with --add");
    }
    if arguments.source_file.is_some() && !does(|verb| matches!(verb, Verb::Merge(_))) {
        return refuse("Merge bitmap source file only supported with --merge");
    }
    if arguments.source_format.is_some() && arguments.source_file.is_none() {
        return refuse("-F only supported with -b");
    }
    Ok(())
}

impl Bitmaps {
    async fn load(file: Edge) -> Result<Bitmaps> {
        let header = Header::load(&file).await?;
        let entries = match header.bitmaps() {
            Some(extension) => load_directory(&file, extension, header.geometry).await?,
            None => Vec::new(),
        };
        let list = entries.into_iter().map(|entry| Stored { entry, bits: None }).collect();
        Ok(Bitmaps { header, file, list })
    }

    async fn store(&self) -> Result<()> {
        let stored: Vec<ToStore<'_>> = self
            .list
            .iter()
            .map(|bitmap| match &bitmap.bits {
                Some(bits) => ToStore::Bits { name: &bitmap.entry.name, bits },
                None => ToStore::Kept(&bitmap.entry),
            })
            .collect();
        store_bitmaps(&self.file, &stored).await?;
        Ok(self.file.flush().await?)
    }

    fn place(&self, name: &str) -> Result<usize> {
        let place = self.list.iter().position(|bitmap| bitmap.entry.name == name);
        place.ok_or_else(|| Failure::new(format!("Dirty bitmap '{name}' not found")))
    }

    /// The bits of a bitmap that can be relied on.
    async fn bits(&mut self, name: &str) -> Result<&mut DirtyBitmap> {
        let place = self.place(name)?;
        let bitmap = &mut self.list[place];
        if bitmap.entry.in_use {
            let text = format!("Bitmap '{name}' is inconsistent and cannot be used");
            return Err(Failure::new(text));
        }
        let bits = match bitmap.bits.take() {
            Some(bits) => bits,
            None => {
                let mut bits = load_bitmap(&self.file, &self.header, &bitmap.entry).await?;
                if !bitmap.entry.auto && bits.state() == BitmapState::Recording {
                    bits.disable().map_err(Error::from)?;
                }
                bits
            }
        };
        Ok(bitmap.bits.insert(bits))
    }

    async fn carry_out(
        &mut self,
        session: &Session,
        arguments: &Arguments,
        verb: &Verb,
    ) -> Result<()> {
        let name = arguments.bitmap.as_str();
        match verb {
            Verb::Add => self.add(name, arguments.granularity.as_deref())?,
            Verb::Remove => {
                let place = self.place(name)?;
                self.list.remove(place);
            }
            Verb::Clear => self.bits(name).await?.clear_all(),
            Verb::Enable => self.bits(name).await?.enable().map_err(Error::from)?,
            Verb::Disable => self.bits(name).await?.disable().map_err(Error::from)?,
            Verb::Merge(source) => {
                let bits = match &arguments.source_file {
                    None => self.bits(source).await?.clone(),
                    Some(file) => {
                        let request = Request::read(file, arguments.source_format.as_deref());
                        let (_, image) = session.open_container(&request).await?;
                        let mut other = Bitmaps::load(image.root.edge().clone()).await?;
                        other.bits(source).await?.clone()
                    }
                };
                self.bits(name).await?.merge(&bits).map_err(Error::from)?;
            }
        }
        Ok(())
    }

    fn add(&mut self, name: &str, granularity: Option<&str>) -> Result<()> {
        if self.place(name).is_ok() {
            return Err(Failure::new(format!("Bitmap already exists: {name}")));
        }
        let cluster = self.header.geometry.cluster_size();
        let granularity = match granularity {
            Some(text) => size::parse(text)?,
            None => cluster.clamp(4096, 65_536),
        };
        let bits = DirtyBitmap::new(self.header.size, granularity).map_err(Error::from)?;
        let entry = BitmapEntry {
            name: name.to_owned(),
            table: ferry_block::format::qcow2::header::Table::default(),
            in_use: false,
            auto: true,
            granularity_bits: 0,
        };
        self.list.push(Stored { entry, bits: Some(bits) });
        Ok(())
    }
}
