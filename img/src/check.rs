//! `check`: whether an image contradicts itself, and repairs.

use clap::{Args, ValueEnum};
use ferry_block::format::qcow2::check::{CheckReport, Repair, check};
use serde_json::{Map, Value};

use crate::failure::{Failure, Result};
use crate::naming::Reading;
use crate::output::{Output, print, print_json};
use crate::session::{Access, Session};

/// Exit statuses beyond 0 for a good image and 1 for a check that could not be done.
const CORRUPT: u8 = 2;
const LEAKS: u8 = 3;
const UNSUPPORTED: u8 = 63;

/// Arguments of `check`.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    image: Reading,
    /// For people or for programs
    #[arg(long, value_enum, default_value = "human")]
    output: Output,
    /// What to repair
    #[arg(short, value_enum)]
    repair: Option<What>,
    /// Say only what is wrong
    #[arg(short)]
    quiet: bool,
    /// Accepted: the whole image is read in any case
    #[arg(short = 'T')]
    cache: Option<String>,
    /// The image
    filename: String,
}

/// What to repair.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// Space that is lost
    Leaks,
    /// Everything
    All,
}

pub(crate) fn run(arguments: &Arguments) -> Result<u8> {
    Session::run(arguments.image.objects(), async |session| {
        let name = &arguments.filename;
        let request = arguments.image.request(name, arguments.repair.map(|_| Access::Resize));
        let (format, file) = session.open_container(&request).await?;
        if format != "qcow2" {
            let text = "This image format does not support checks";
            return Err(Failure::new(text).with_status(UNSUPPORTED));
        }
        let repair = arguments.repair.map(|what| match what {
            What::Leaks => Repair::Leaks,
            What::All => Repair::All,
        });
        let report = check(file.root.edge(), repair).await?;
        match arguments.output {
            Output::Json => print_json(&Value::Object(json(name, &report)))?,
            Output::Human if !arguments.quiet || !report.is_clean() => human(&report)?,
            Output::Human => {}
        }
        Ok(match &report {
            report if report.check_errors != 0 => 1,
            report if report.corruptions != 0 => CORRUPT,
            report if report.leaks != 0 => LEAKS,
            _ => 0,
        })
    })
}

/// QMP's `ImageCheck`: numbers of zero are left out, but for the errors.
fn json(name: &str, report: &CheckReport) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("filename".into(), name.into());
    map.insert("format".into(), "qcow2".into());
    map.insert("check-errors".into(), report.check_errors.into());
    for (key, value) in [
        ("image-end-offset", report.image_end_offset),
        ("corruptions", report.corruptions),
        ("leaks", report.leaks),
        ("corruptions-fixed", report.corruptions_fixed),
        ("leaks-fixed", report.leaks_fixed),
        ("total-clusters", report.total_clusters),
        ("allocated-clusters", report.allocated_clusters),
        ("fragmented-clusters", report.fragmented_clusters),
        ("compressed-clusters", report.compressed_clusters),
    ] {
        if value != 0 {
            map.insert(key.into(), value.into());
        }
    }
    map
}

fn human(report: &CheckReport) -> Result<()> {
    for message in &report.messages {
        crate::say_plainly(&message.to_string());
    }
    let (corruptions, leaks) = (report.corruptions_fixed, report.leaks_fixed);
    if corruptions != 0 || leaks != 0 {
        print(format!(
            "The following inconsistencies were found and repaired:\n\n    {leaks} leaked \
             clusters\n    {corruptions} corruptions\n\nDouble checking the fixed image now..."
        ))?;
    }
    if report.is_clean() {
        print("No errors were found on the image.")?;
    } else {
        if report.corruptions != 0 {
            print(format!(
                "\n{} errors were found on the image.\nData may be corrupted, or further writes \
                 to the image may corrupt it.",
                report.corruptions
            ))?;
        }
        if report.leaks != 0 {
            print(format!(
                "\n{} leaked clusters were found on the image.\nThis means waste of disk space, \
                 but no harm to data.",
                report.leaks
            ))?;
        }
        if report.check_errors != 0 {
            let errors = report.check_errors;
            print(format!("\n{errors} internal errors have occurred during the check."))?;
        }
    }
    let (allocated, total) = (report.allocated_clusters, report.total_clusters);
    if total != 0 && allocated != 0 {
        let percent = |part: u64, whole: u64| {
            let hundredths =
                (u128::from(part) * 10_000 + u128::from(whole) / 2) / u128::from(whole);
            format!("{}.{:02}%", hundredths / 100, hundredths % 100)
        };
        print(format!(
            "{allocated}/{total} = {} allocated, {} fragmented, {} compressed clusters",
            percent(allocated, total),
            percent(report.fragmented_clusters, allocated),
            percent(report.compressed_clusters, allocated)
        ))?;
    }
    if report.image_end_offset != 0 {
        print(format!("Image end offset: {}", report.image_end_offset))?;
    }
    Ok(())
}
