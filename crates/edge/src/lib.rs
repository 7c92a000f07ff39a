//! Keiko's faces to the outside: HTTP, MCP at `/mcp`, gRPC for work.
//!
//! Requests are parsed into typed names and an authorised caller here; bad input ends here. The edge never touches the
//! store.

mod follow;
pub mod grpc;
pub mod http;
