//! Tests of a node as a whole: from files to files.

mod install;
mod machine;
mod restart;
mod runtimes;
