//! Keiko's faces to the outside. HTTP so far.
//!
//! Requests are parsed into typed names and an authorised caller here; bad input ends here. The edge never touches the
//! store.

pub mod http;
