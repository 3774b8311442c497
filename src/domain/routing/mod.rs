//! Routes requests to services, and decides which pages may open WebSockets.

pub mod origin;
pub mod route;
