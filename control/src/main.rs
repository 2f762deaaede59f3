//! `lvsd`: what each command prints and with which status it exits.

use std::{
    io::{self, IsTerminal as _, Write as _},
    path::Path,
    process::ExitCode,
};

use anyhow::{Context as _, bail};
use clap::Parser as _;
use control::{
    admin,
    cli::{Cli, Command, Format},
    config::{self, outline::Outline},
    daemon, dataplane,
    director::Order,
    host::{addresses, virtual_macs},
    netlink::Netlink,
};
use tracing_subscriber::EnvFilter;

/// Also clap's status for a wrong command line.
const UNREADABLE: u8 = 2;

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run { config, config_id, run_dir, xdp_mode } => {
            log_to_stderr();
            let file = daemon::File { path: config, config_id: config_id.config_id };
            daemon::run(&file, &run_dir, xdp_mode)
        }
        Command::Check { file: Some(file), config_id, format, .. } => {
            return check(&file, &config_id.config_id, format);
        }
        Command::Check { explain, .. } => explain_word(&explain.unwrap_or_default()),
        Command::Plan { file, config_id, format, run_dir } => {
            plan(&file, &config_id.config_id, format, &run_dir)
        }
        Command::Fmt { file, check } => format_file(&file, check),
        Command::Reload { run_dir } => block_on(admin::reload(&run_dir)),
        Command::Drain { service, real, run_dir } => {
            order(&run_dir, Order::Weight { service, real, weight: 0 })
        }
        Command::Enable { service, real, run_dir } => order(&run_dir, Order::Enable { service, real }),
        Command::Weight { service, real, weight, run_dir } => {
            order(&run_dir, Order::Weight { service, real, weight })
        }
        Command::Reset { run_dir } => order(&run_dir, Order::Reset),
        Command::Failover { instance, to, run_dir } => {
            told(admin::hand_over(&run_dir, admin::Handover { instance, to }))
        }
        Command::Failback { instance, run_dir } => told(admin::take_part(&run_dir, instance)),
        Command::Status { json, run_dir } => status(&run_dir, json),
        Command::Unload { run_dir } => unload(&run_dir),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lvsd: {}", explain(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, each once: some errors already say their cause.
fn explain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        _ if said.contains(&cause) => said,
        _ => format!("{said}: {cause}"),
    })
}

fn log_to_stderr() {
    // At a reload the netlink crate warns of what an earlier socket was still told.
    let usual = || EnvFilter::new("info,netlink_proto=error");
    let filter = EnvFilter::try_from_env("LVSD_LOG").unwrap_or_else(|_| usual());
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
}

fn check(file: &Path, config_id: &str, format: Format) -> ExitCode {
    let loaded = match config::load(file, config_id) {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("lvsd: {error}");
            return ExitCode::from(UNREADABLE);
        }
    };
    if loaded.omitted > 0 && format == Format::Json {
        eprintln!("lvsd: {} more diagnostics are not listed", loaded.omitted);
    }
    let said = match format {
        Format::Text => Ok(loaded.render_text()),
        Format::Json => serde_json::to_string_pretty(&loaded.diagnostics).map(|json| json + "\n"),
    };
    if let Err(error) = said.map_err(io::Error::from).and_then(|said| say(&said)) {
        eprintln!("lvsd: {error}");
        return ExitCode::FAILURE;
    }
    if loaded.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn plan(file: &Path, config_id: &str, format: Format, run_dir: &Path) -> anyhow::Result<()> {
    let loaded = config::load(file, config_id)?;
    eprint!("{}", loaded.render_text());
    if loaded.has_errors() {
        bail!("{} has errors: a reload would change nothing", file.display());
    }
    let changes = block_on(admin::outline(run_dir))?.changes(&Outline::of(&loaded.config));
    let text = match (format, changes.as_slice()) {
        (Format::Json, changes) => serde_json::to_string_pretty(changes)? + "\n",
        (Format::Text, []) => "a reload would change nothing\n".to_owned(),
        (Format::Text, changes) => changes.iter().map(ToString::to_string).collect(),
    };
    Ok(say(&text)?)
}

fn format_file(file: &Path, check: bool) -> anyhow::Result<()> {
    let (text, formatted) = config::format(file)?;
    match check {
        true if text != formatted => bail!("{} is written otherwise than `lvsd fmt` would", file.display()),
        true => Ok(()),
        false => Ok(say(&formatted)?),
    }
}

fn explain_word(what: &str) -> anyhow::Result<()> {
    match config::explain::explain(what) {
        Some(text) => Ok(say(&text)?),
        None => match config::explain::nearest(what) {
            Some(near) => bail!("{what} is neither a word nor a code; did you mean {near}?"),
            None => bail!("{what} is neither a word nor a code"),
        },
    }
}

fn block_on<T>(answer: impl Future<Output = Result<T, admin::AdminError>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(answer)?)
}

fn order(run_dir: &Path, order: Order) -> anyhow::Result<()> {
    block_on(admin::order(run_dir, order))
}

fn told(answer: impl Future<Output = Result<String, admin::AdminError>>) -> anyhow::Result<()> {
    Ok(say(&block_on(answer)?)?)
}

fn status(run_dir: &Path, json: bool) -> anyhow::Result<()> {
    let status = block_on(admin::status(run_dir))?;
    let text = if json { serde_json::to_string_pretty(&status)? + "\n" } else { status.to_string() };
    Ok(say(&text)?)
}

fn unload(run_dir: &Path) -> anyhow::Result<()> {
    let _lock = daemon::lock(run_dir).context("lvsd must be stopped first")?;
    // Without the program the kernel would answer for addresses that are still there.
    let left = dataplane::left_vips(run_dir);
    let places: Vec<_> = left.iter().map(|(address, vip)| (vip.ifindex, *address)).collect();
    let withdraw = async {
        let netlink = Netlink::open()?;
        virtual_macs::forget(&netlink, virtual_macs::of_vips(left.iter().map(|(_, vip)| vip)).iter()).await;
        addresses::withdraw_left(&netlink, &places).await
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(withdraw).context("nothing was detached")?;
    let removed = dataplane::unload(run_dir)?;
    let nothing = || format!("nothing is loaded below {}\n", run_dir.display());
    Ok(say(&if removed { "detached and removed\n".to_owned() } else { nothing() })?)
}

/// To standard output. A reader that has seen enough, as `head` has, is content.
fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        done => done,
    }
}
