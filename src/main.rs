//! The program: command line, settings, logging, start, signals, drain.

use std::{error::Error, io, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser as _;
use tokio::signal::unix::{SignalKind, signal};
use wsbalancer::{
    admin::READYZ,
    app::{App, Listeners},
    cli::{Cli, Command},
    config::{self, Problems},
    demo,
    telemetry::logging,
};

/// Wrong usage or configuration (EX_USAGE of sysexits.h).
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { EXIT_USAGE.into() } else { ExitCode::SUCCESS };
        }
    };
    let command = cli.command.unwrap_or(Command::Run(cli.options));
    match actix_rt::System::new().block_on(execute(command)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            if error.is::<Problems>() { EXIT_USAGE.into() } else { ExitCode::FAILURE }
        }
    }
}

async fn execute(command: Command) -> Result<(), Box<dyn Error>> {
    match command {
        Command::Run(options) => run(options.config).await,
        Command::Check(options) => {
            print!("{}", config::load(options.config.as_deref())?);
            Ok(())
        }
        Command::Demo(options) => {
            demo::run(options.config.as_deref(), shutdown_signal()?).await?;
            Ok(())
        }
        Command::Pod { listen } => {
            let pod = demo::pod::start(
                std::net::TcpListener::bind(listen)?,
                demo::pod::Identity::from_env(),
            )?;
            println!("listening on {}", pod.address);
            shutdown_signal()?.await;
            pod.stop().await;
            Ok(())
        }
        Command::Client { url, every } => {
            Ok(demo::client::run(&url, every, shutdown_signal()?).await?)
        }
        Command::Healthcheck(options) => {
            healthcheck(config::load_admin_listen(options.config.as_deref())?).await
        }
    }
}

async fn run(file: Option<PathBuf>) -> Result<(), Box<dyn Error>> {
    // Signals are handled first: the parent can send one at once, and an unhandled one kills the
    // process.
    let shutdown = shutdown_signal()?;
    let mut hangup = signal(SignalKind::hangup())?;
    let config = config::load(file.as_deref())?;
    logging::init(config.log);
    let mut app = App::start(&config, Listeners::inherit_or_bind(&config)?)?;
    let live_config = app.reload_from(file);
    actix_rt::spawn(async move {
        while hangup.recv().await.is_some() {
            live_config.request_reload().await;
        }
    });
    tokio::select! {
        () = shutdown => {}
        reason = app.failed() => return Err(reason.into()),
    }
    log::info!("shutting down");
    let summary = app.stop(shutdown_signal()?).await;
    log::info!("stopped: {} sessions were open, {} were cut", summary.sessions, summary.cut);
    Ok(())
}

/// Resolves at the next SIGTERM or SIGINT.
fn shutdown_signal() -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

/// Calls the readiness probe of the balancer that runs with the same settings.
async fn healthcheck(mut admin: SocketAddr) -> Result<(), Box<dyn Error>> {
    if admin.ip().is_unspecified() {
        let loopback = if admin.is_ipv4() {
            [127, 0, 0, 1].into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        admin.set_ip(loopback);
    }
    let client = awc::Client::builder().timeout(Duration::from_secs(2)).finish();
    let response = client
        .get(format!("http://{admin}{READYZ}"))
        .send()
        .await
        .map_err(|error| error.to_string())?;
    if response.status().is_success() {
        Ok(())
    } else {
        Err(format!("not ready: {}", response.status()).into())
    }
}
