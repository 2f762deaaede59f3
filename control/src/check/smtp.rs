//! Does the real server greet as a mail server does? Banner, HELO, QUIT.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::timeout,
};

use super::WHOLE;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SmtpError {
    #[error("{0} while sending {1}")]
    Write(io::ErrorKind, Step),
    #[error("{0} while reading the answer to {1}")]
    Read(io::ErrorKind, Step),
    #[error("no answer to {1} within {0:?}")]
    Timeout(Duration, Step),
    #[error("the dialogue is not complete after {0:?}")]
    TooSlow(Duration),
    #[error("connection closed instead of an answer to {0}")]
    Closed(Step),
    #[error("the answer to {0} is longer than {LIMIT} bytes")]
    TooLong(Step),
    #[error("the answer to {step} is \"{got}\"")]
    Unexpected { step: Step, got: String },
}

/// What the server has to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Connection,
    Helo,
    Quit,
}

impl std::fmt::Display for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connection => "the connection",
            Self::Helo => "HELO",
            Self::Quit => "QUIT",
        })
    }
}

/// Of one answer, with all its lines.
const LIMIT: usize = 4096;

/// `limit` (`connect_timeout`) bounds each step.
pub async fn greet(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    helo: &str,
    limit: Duration,
) -> Result<(), SmtpError> {
    let whole = WHOLE.of(limit);
    let dialogue = async {
        answer(stream, Step::Connection, Some("220"), limit).await?;
        say(stream, Step::Helo, &format!("HELO {helo}\r\n"), limit).await?;
        answer(stream, Step::Helo, Some("250"), limit).await?;
        say(stream, Step::Quit, "QUIT\r\n", limit).await?;
        answer(stream, Step::Quit, None, limit).await
    };
    timeout(whole, dialogue).await.unwrap_or(Err(SmtpError::TooSlow(whole)))
}

async fn say(
    stream: &mut (impl AsyncWrite + Unpin),
    step: Step,
    line: &str,
    limit: Duration,
) -> Result<(), SmtpError> {
    let written = timeout(limit, stream.write_all(line.as_bytes())).await;
    written
        .map_err(|_| SmtpError::Timeout(limit, step))?
        .map_err(|error| SmtpError::Write(error.kind(), step))
}

/// Reads one answer; `code` is how it must begin.
async fn answer(
    stream: &mut (impl AsyncRead + Unpin),
    step: Step,
    code: Option<&str>,
    limit: Duration,
) -> Result<(), SmtpError> {
    let mut answer = Vec::new();
    while !is_complete(&answer) {
        if answer.len() > LIMIT {
            return Err(SmtpError::TooLong(step));
        }
        let got = timeout(limit, stream.read_buf(&mut answer))
            .await
            .map_err(|_| SmtpError::Timeout(limit, step))?
            .map_err(|error| SmtpError::Read(error.kind(), step))?;
        if got == 0 {
            return Err(SmtpError::Closed(step));
        }
    }
    if code.is_none_or(|code| answer.starts_with(code.as_bytes())) {
        return Ok(());
    }
    let line = answer.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let start = line.get(..80).unwrap_or(line);
    Err(SmtpError::Unexpected { step, got: start.escape_ascii().to_string() })
}

/// RFC 5321 4.2.1: a `-` behind the code says that another line follows.
fn is_complete(answer: &[u8]) -> bool {
    let Some(lines) = answer.strip_suffix(b"\n") else { return false };
    let last = lines.rsplit(|byte| *byte == b'\n').next().unwrap_or_default();
    last.get(3) != Some(&b'-')
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt as _, BufReader, DuplexStream, duplex},
        time::Instant,
    };

    use super::*;

    const LIMIT_OF_STEP: Duration = Duration::from_secs(3);

    /// A server that greets with the first of `answers` and answers each line with the next; then it is silent,
    /// or closes. Also what it was told, and how long the check took.
    async fn check(answers: &[&str], closes: bool) -> (String, String, Duration) {
        let (mut near, far) = duplex(256 * 1024);
        let start = Instant::now();
        let mut told = String::new();
        let serve = async {
            let mut server: BufReader<DuplexStream> = BufReader::new(far);
            for (index, answer) in answers.iter().enumerate() {
                if index > 0 {
                    server.read_line(&mut told).await.unwrap();
                }
                server.write_all(answer.as_bytes()).await.unwrap();
            }
            if !closes {
                std::future::pending::<()>().await;
            }
        };
        let result = tokio::select! {
            result = greet(&mut near, "lb.example.org", LIMIT_OF_STEP) => result,
            never = async { serve.await; std::future::pending().await } => never,
        };
        (result.map_or_else(|error| error.to_string(), |()| "good".into()), told, start.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn a_mail_server_is_greeted_and_left() {
        let answers = ["220-mx\r\n220 ESMTP\r\n", "250 hello\r\n", "500 what?\n"];
        let (result, told, took) = check(&answers, false).await;
        assert_eq!((result.as_str(), took), ("good", Duration::ZERO));
        assert_eq!(told, "HELO lb.example.org\r\nQUIT\r\n");
    }

    #[tokio::test(start_paused = true)]
    async fn another_code_fails_and_is_shown() {
        assert_eq!(
            check(&["554 go away\r\n"], false).await.0,
            r#"the answer to the connection is "554 go away""#
        );
        assert_eq!(
            check(&["220 \r\n", "502 no\x1b\r\n"], false).await.0,
            r#"the answer to HELO is "502 no\x1b""#
        );
    }

    #[tokio::test(start_paused = true)]
    async fn silence_times_out_at_each_step() {
        for (answers, step) in
            [(&[][..], "the connection"), (&["220 \n"], "HELO"), (&["220 \n", "250 \n"], "QUIT")]
        {
            let (result, _, took) = check(answers, false).await;
            assert_eq!((result, took), (format!("no answer to {step} within 3s"), LIMIT_OF_STEP));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_close_fails_at_each_step() {
        for (answers, step) in [(&[][..], "the connection"), (&["220 \n"], "HELO")] {
            let result = check(answers, true).await.0;
            // The HELO may not even be taken any more.
            let write = format!("broken pipe while sending {step}");
            assert!(
                [format!("connection closed instead of an answer to {step}"), write].contains(&result),
                "{result}"
            );
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_without_end_is_cut_off() {
        let endless = "220-more\r\n".repeat(2000);
        assert_eq!(
            check(&[&endless], false).await.0,
            "the answer to the connection is longer than 4096 bytes"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_dripping_server_cannot_hold_its_check() {
        let (mut near, mut far) = duplex(64);
        let drip = async {
            loop {
                tokio::time::sleep(Duration::from_secs(2)).await;
                far.write_all(b"2").await.unwrap();
            }
        };
        let result = tokio::select! {
            result = greet(&mut near, "lb", LIMIT_OF_STEP) => result,
            never = drip => never,
        };
        assert_eq!(result, Err(SmtpError::TooSlow(LIMIT_OF_STEP * 10)));
    }
}
