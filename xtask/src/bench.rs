//! stub
use anyhow::Result;
pub(crate) struct Wanted {
    pub(crate) only: Option<String>,
    pub(crate) seconds: u64,
    pub(crate) disk: Option<std::path::PathBuf>,
}
pub(crate) fn run(_w: &Wanted) -> Result<()> {
    Ok(())
}
