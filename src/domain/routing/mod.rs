//! Which service a request is for, and which pages may open WebSockets.

pub mod origin;
pub mod route;
