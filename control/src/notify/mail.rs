//! How does somebody learn by mail that an instance or a pool changed? Each letter is tried once; nobody waits for it.

use std::time::Duration;

use lettre::{
    AsyncSmtpTransport, AsyncTransport as _, Message, Tokio1Executor,
    message::{Mailbox, header::ContentType},
    transport::smtp::extension::ClientId,
};
use tokio::{
    sync::{mpsc, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use crate::config::model::Mail;

/// What happened, in a line and in detail.
#[derive(Clone, Debug, PartialEq)]
pub struct Letter {
    pub subject: String,
    pub text: String,
    pub is_fault: bool,
}

/// Takes letters. Cheap to clone.
#[derive(Clone)]
pub struct Mailer(mpsc::Sender<Letter>);

#[derive(Debug, thiserror::Error)]
enum MailError {
    #[error(transparent)]
    Message(#[from] lettre::error::Error),
    #[error(transparent)]
    Relay(#[from] lettre::transport::smtp::Error),
    #[error("the relay takes longer than {0:?}")]
    Timeout(Duration),
}

/// A pool that goes down as a whole fits; what does not is only in the log.
const WAITING: usize = 256;
/// A whole dialogue may take so many times the timeout that connect and each answer have.
const DIALOGUE: u32 = 3;
/// So long letters may take when the daemon ends, as scripts.
const LAST_WORDS: Duration = Duration::from_secs(1);

impl Mailer {
    pub fn new() -> (Self, mpsc::Receiver<Letter>) {
        let (sender, letters) = mpsc::channel(WAITING);
        (Self(sender), letters)
    }

    pub fn send(&self, letter: Letter) {
        if let Err(error) = self.0.try_send(letter) {
            tracing::warn!(%error, "a mail is left out: too many wait for the relay");
        }
    }
}

/// Sends what comes, until cancelled. `settings` say by whom and to whom; the name is this node's.
pub async fn run(
    settings: watch::Receiver<(String, Option<Mail>)>,
    mut letters: mpsc::Receiver<Letter>,
    cancel: CancellationToken,
) {
    let send = async |letter: Letter| {
        let (name, mail) = settings.borrow().clone();
        let Some(mail) = mail.filter(|mail| mail.faults || !letter.is_fault) else { return };
        if let Err(error) = deliver(&name, &mail, &letter).await {
            tracing::error!(relay = mail.relay, %error, subject = letter.subject, "a mail could not be sent");
        }
    };
    loop {
        let letter = tokio::select! {
            () = cancel.cancelled() => break,
            letter = letters.recv() => letter,
        };
        let Some(letter) = letter else { return };
        tokio::select! {
            () = send(letter.clone()) => {}
            () = cancel.cancelled() => {
                // What was under way is begun anew: better twice than not at all.
                let _ = timeout(LAST_WORDS, send(letter)).await;
                return;
            }
        }
    }
    let rest = async {
        while let Ok(letter) = letters.try_recv() {
            send(letter).await;
        }
    };
    let _ = timeout(LAST_WORDS, rest).await;
}

async fn deliver(name: &str, mail: &Mail, letter: &Letter) -> Result<(), MailError> {
    let mut message = Message::builder()
        .from(Mailbox::new(None, mail.from.clone()))
        .subject(format!("[{name}] {}", letter.subject))
        .header(ContentType::TEXT_PLAIN);
    for to in &mail.to {
        message = message.to(Mailbox::new(None, to.clone()));
    }
    let message = message.body(letter.text.clone())?;
    let mut relay = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&mail.relay)
        .port(mail.port)
        .timeout(Some(mail.timeout));
    if let Some(helo) = &mail.helo {
        relay = relay.hello_name(ClientId::Domain(helo.clone()));
    }
    let patience = mail.timeout.saturating_mul(DIALOGUE);
    match timeout(patience, relay.build().send(message)).await {
        Ok(sent) => Ok(sent.map(drop)?),
        Err(_) => Err(MailError::Timeout(patience)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    fn mail(port: u16) -> Mail {
        Mail {
            to: ["ops@example.org", "night@example.org"].map(|it| it.parse().unwrap()).into(),
            from: "lb1@example.org".parse().unwrap(),
            relay: "127.0.0.1".to_owned(),
            port,
            helo: Some("lb1.example.org".to_owned()),
            timeout: Duration::from_millis(500),
            faults: false,
        }
    }

    fn letter(subject: &str, is_fault: bool) -> Letter {
        Letter { subject: subject.to_owned(), text: "was BACKUP\n.\nas said".to_owned(), is_fault }
    }

    /// Takes one mail and returns all lines of its client.
    async fn relay(listener: &TcpListener) -> Vec<String> {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        stream.write_all(b"220 relay\r\n").await.unwrap();
        let (mut said, mut in_data) = (Vec::new(), false);
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await.unwrap() == 0 {
                return said;
            }
            let line = line.trim_end().to_owned();
            let answer = match line.as_str() {
                "." => {
                    in_data = false;
                    "250 taken\r\n"
                }
                _ if in_data => "",
                "DATA" => {
                    in_data = true;
                    "354 go on\r\n"
                }
                "QUIT" => "221 bye\r\n",
                _ => "250 fine\r\n",
            };
            said.push(line);
            stream.write_all(answer.as_bytes()).await.unwrap();
        }
    }

    #[tokio::test]
    async fn a_letter_reaches_the_relay_and_no_fault_does_where_none_is_wanted() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let settings = ("lb1".to_owned(), Some(mail(listener.local_addr().unwrap().port())));
        let (mailer, letters) = Mailer::new();
        let (_settings, receiver) = watch::channel(settings);
        let cancel = CancellationToken::new();
        let task = tokio::spawn(run(receiver, letters, cancel.clone()));
        mailer.send(letter("VI_1 is FAULT", true));
        mailer.send(letter("VI_1 is MASTER", false));
        let said = timeout(LONG, relay(&listener)).await.unwrap();
        for line in [
            "EHLO lb1.example.org",
            "MAIL FROM:<lb1@example.org>",
            "RCPT TO:<ops@example.org>",
            "RCPT TO:<night@example.org>",
            "Subject: [lb1] VI_1 is MASTER",
            "..",
        ] {
            assert!(said.iter().any(|it| it == line), "{line} is missing in {said:#?}");
        }
        cancel.cancel();
        timeout(LONG, task).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_relay_that_is_silent_or_refuses_is_an_error_in_time() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let sent = |port| async move {
            timeout(LONG, deliver("lb1", &mail(port), &letter("x", false))).await.unwrap().unwrap_err()
        };
        let silent = sent(port).await.to_string();
        assert!(!silent.is_empty());
        drop(listener);
        sent(port).await;
    }

    #[test]
    fn a_relay_that_takes_nothing_costs_letters_and_no_memory() {
        let (mailer, mut letters) = Mailer::new();
        for number in 0..2 * WAITING {
            mailer.send(letter(&number.to_string(), false));
        }
        let waiting = std::iter::from_fn(|| letters.try_recv().ok()).count();
        assert_eq!(waiting, WAITING);
    }
}
