//! stub
use crate::workspace::Workspace;
use std::process::ExitCode;
/// Arguments.
#[derive(Debug, clap::Args)]
pub struct Arguments {}
/// stub
pub fn main(_: &Workspace, _: &Arguments) -> anyhow::Result<ExitCode> {
    anyhow::bail!("not there yet")
}
