//! wsbalancer

pub mod actors;
pub mod app;
pub mod cli;
pub mod config;
pub mod demo;
pub mod domain;
pub mod http;
pub mod relay;
pub mod telemetry;
