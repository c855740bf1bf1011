//! The command line, the sweep engine and the report.
