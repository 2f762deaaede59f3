//! `lab-http NAME ADDRESS:PORT`: a real server whose every page is its own name.

use std::{
    env,
    io::{BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result};

fn main() -> Result<()> {
    let mut arguments = env::args().skip(1);
    let name = arguments.next().context("usage: lab-http NAME ADDRESS:PORT")?;
    let listener = TcpListener::bind(arguments.next().context("no ADDRESS:PORT")?)?;
    for stream in listener.incoming() {
        let (stream, name) = (stream?, name.clone());
        thread::spawn(move || {
            if let Err(error) = answer(stream, &name) {
                // Checks and measurements that give up are everyday life of a server.
                eprintln!("{error:#}");
            }
        });
    }
    Ok(())
}

fn answer(mut stream: TcpStream, name: &str) -> Result<()> {
    // A conversation may pause while its director is changed.
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    for line in BufReader::new(&stream).lines() {
        if line?.is_empty() {
            let length = name.len();
            // One write: pieces would wait for acknowledgements that the client delays.
            let page = format!(
                "HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n{name}"
            );
            stream.write_all(page.as_bytes())?;
            return Ok(());
        }
    }
    // The end came before the empty line: a TCP check.
    Ok(())
}
