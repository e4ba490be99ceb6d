//! `ardent man`: the help of all commands as manual pages.

use std::fs;

use clap::CommandFactory as _;
use clap_mangen::Man;

use crate::args::{Cli, ManArgs};
use crate::failure::Failure;
use crate::output::Output;

/// Prints the page of the program, or writes all pages.
pub fn run(output: &Output, args: &ManArgs) -> Result<(), Failure> {
    let Some(folder) = &args.dir else {
        return output.stream(|mut out| Man::new(Cli::command()).render(&mut out));
    };
    fs::create_dir_all(folder)
        .and_then(|()| clap_mangen::generate_to(Cli::command(), folder))
        .map_err(|error| Failure::local(format!("{} cannot be written", folder.display()), &error))
}
