//! The machine that is measured: cores, memory, disk, and what a sync costs on it.

use crate::report::number;
use crate::stats::percentile;
use anyhow::Context;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tempfile::TempDir;

/// Syncs of one probe.
const SYNCS: usize = 200;
/// Bytes written before each sync.
const BLOCK: usize = 4_096;

/// Where data directories are made: all figures are of this disk.
pub(crate) struct Place(PathBuf);

impl Place {
    /// A folder, made when it is missing.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Place(folder.canonicalize()?))
    }

    /// A new folder, removed with everything in it when it is dropped.
    pub fn fresh(&self) -> anyhow::Result<TempDir> {
        tempfile::Builder::new().prefix("keiko-bench-").tempdir_in(&self.0).context("no data directory could be made")
    }

    /// What a sync costs here now.
    pub fn syncs(&self) -> anyhow::Result<Syncs> {
        let folder = self.fresh()?;
        let growing = sync_times(&new_file(&folder.path().join("growing"))?)?;
        let file = new_file(&folder.path().join("overwritten"))?;
        file.write_all_at(&vec![1; SYNCS * BLOCK], 0)?;
        file.sync_all()?;
        Ok(Syncs { overwriting: sync_times(&file)?, growing })
    }
}

/// Times of `pwrite` of 4 KiB and `fdatasync`, in milliseconds.
pub(crate) struct Syncs {
    /// Inside a file that has its size already: the cheapest durable write there is.
    overwriting: Vec<f64>,
    /// At the end of a file, which moves its size too.
    growing: Vec<f64>,
}

impl Syncs {
    /// The median of the cheaper kind: what goals are computed from, so the strict one.
    pub fn median_ms(&self) -> f64 {
        percentile(&self.overwriting, 0.5)
    }
}

fn new_file(path: &Path) -> anyhow::Result<File> {
    OpenOptions::new().create_new(true).write(true).open(path).with_context(|| format!("cannot make {}", path.display()))
}

fn sync_times(file: &File) -> anyhow::Result<Vec<f64>> {
    let block = [0x5a; BLOCK];
    let mut times = Vec::with_capacity(SYNCS);
    for n in 0..SYNCS {
        let begun = Instant::now();
        file.write_all_at(&block, (n * BLOCK) as u64)?;
        file.sync_data()?;
        times.push(begun.elapsed().as_secs_f64() * 1_000.0);
    }
    Ok(times)
}

/// The machine as a Markdown section.
pub(crate) fn describe(place: &Place) -> anyhow::Result<String> {
    let syncs = place.syncs()?;
    let cores = std::thread::available_parallelism()?;
    let (device, kind) = file_system(&place.0).unwrap_or_else(|| ("unknown".into(), "unknown".into()));
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut text = String::from("## Machine\n\n| | |\n|---|---|\n");
    let mut row = |name: &str, value: String| text += &format!("| {name} | {value} |\n");
    row("CPU", format!("{cores} cores, {}", proc_value("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into())));
    row("memory", memory().unwrap_or_else(|| "unknown".into()));
    row("kernel", kernel.trim().to_owned());
    row("data directories", format!("`{}`: {kind} on {device}", place.0.display()));
    let times =
        |samples: &[f64]| format!("median {} ms, P99 {} ms", number(percentile(samples, 0.5)), number(percentile(samples, 0.99)));
    row(&format!("fsync ({SYNCS} × 4 KiB pwrite + fdatasync, overwriting)"), times(&syncs.overwriting));
    row(&format!("fsync ({SYNCS} × 4 KiB pwrite + fdatasync, growing file)"), times(&syncs.growing));
    if matches!(kind.as_str(), "tmpfs" | "ramfs" | "overlay") {
        text += &format!("\n**On {kind} a sync may cost nothing: figures of durable writes are not to be quoted.**\n");
    }
    Ok(text)
}

fn memory() -> Option<String> {
    let kib: f64 = proc_value("/proc/meminfo", "MemTotal")?.split_whitespace().next()?.parse().ok()?;
    Some(format!("{} GiB", number(kib / 1_048_576.0)))
}

/// Device and kind of the file system that holds a folder.
fn file_system(folder: &Path) -> Option<(String, String)> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    // Of several mounts on one point the last is in force, and `max_by_key` answers the last of equals.
    let mount = fields.filter(|f| f.len() > 2 && folder.starts_with(f[1])).max_by_key(|f| f[1].len())?;
    Some((mount[0].to_owned(), mount[2].to_owned()))
}

/// The value of a `name: value` line in a file of `/proc`.
pub(crate) fn proc_value(file: &str, name: &str) -> Option<String> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find(|line| line.split(':').next().is_some_and(|n| n.trim() == name))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}
