//! OpenMetadata over HTTP.
//!
//! Invariant: a reading is whole or an error; the token goes to the configured address alone, and no error holds it.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Client, StatusCode, Url};
use tokio::time::{sleep, timeout};

use super::{Assembly, PictureError, Reading};
use crate::client;
use crate::config::{OpenMetadataSection, Secret};
use crate::sync::catalog::{Catalog, CatalogError, Hint, Picture, short};

/// The longest page, in bytes; a thousand wide tables fit.
const PAGE_LIMIT: usize = 64 << 20;
/// All pages of a reading together, in bytes.
const READING_LIMIT: usize = 4 << 30;
/// A reading as a whole.
const READING_TIMEOUT: Duration = Duration::from_secs(600);
/// The first pause before a request is tried again; it doubles, give or take a half.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest, and the longest that a server may ask for.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// How often a reading is begun again that somebody wrote into.
const ANEW: usize = 2;
/// The shortest part of a token that is looked for in a server's words.
const PART: usize = 8;

/// A client of one OpenMetadata.
#[derive(Clone, Debug)]
pub struct OpenMetadata {
    section: Arc<OpenMetadataSection>,
    reading: Arc<Reading>,
    base: Url,
    client: Client,
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(transparent)]
    Http(#[from] client::ClientError),
    #[error("{0} is no address")]
    Address(String),
}

type Result<T> = std::result::Result<T, CatalogError>;

/// The bot's token, for one reading.
struct Token {
    header: HeaderValue,
    secret: Secret,
}

impl Token {
    /// A server's words without the token, should it quote it; before they are made short, since half of it is enough.
    fn hidden(&self, words: &str) -> String {
        let secret = self.secret.expose().trim();
        let parts = std::iter::once(secret).chain(secret.split('.')).filter(|part| part.len() >= PART);
        parts.fold(words.to_owned(), |words, part| words.replace(part, "(token)"))
    }
}

/// What a request came to.
enum Answer {
    Body(Bytes),
    /// 404. Does OpenMetadata itself say that it has no such entity? A proxy before it knows nothing of that.
    NotFound {
        gone: bool,
    },
}

impl OpenMetadata {
    /// # Errors
    /// There are no certificates to trust, or the address is none.
    pub fn new(section: OpenMetadataSection) -> std::result::Result<Self, ClientError> {
        let client = client::http(&section.base_url, section.ca.as_deref(), section.timeout)?;
        let base =
            Url::parse(&section.base_url).map_err(|_| ClientError::Address(section.base_url.clone()))?;
        let catalogs =
            section.services.iter().map(|(service, catalog)| (service.clone(), catalog.as_str().into()));
        let reading = Reading { catalogs: catalogs.collect(), glossaries: section.glossaries };
        Ok(Self { section: Arc::new(section), reading: Arc::new(reading), base, client })
    }

    /// What OpenMetadata says of itself, by `GET /api/v1/system/version`.
    ///
    /// # Errors
    /// It does not answer, or does not take the token.
    pub async fn version(&self) -> Result<String> {
        let token = self.token().await?;
        let body = self.get(&token, &["system", "version"], &[]).await?.body("system/version")?;
        let version = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let version = version.and_then(|version| Some(short(version.get("version")?.as_str()?)));
        version.ok_or_else(|| CatalogError::NotWhole("OpenMetadata's version is none".to_owned()))
    }

    /// The bot's token as its file has it now.
    async fn token(&self) -> Result<Token> {
        let file = self.section.token.clone();
        let read = tokio::task::spawn_blocking(move || file.read()).await;
        let path = self.section.token.path().display();
        let wrong = |what: &str| CatalogError::Unauthorized(format!("{path} {what}"));
        let secret = match read {
            Ok(Ok(secret)) => secret,
            Ok(Err(error)) => return Err(wrong(&format!("cannot be read: {error}"))),
            Err(_) => return Err(wrong("cannot be read")),
        };
        let mut value = HeaderValue::from_str(&format!("Bearer {}", secret.expose().trim()))
            .map_err(|_| wrong("holds no token: it has characters that no token has"))?;
        value.set_sensitive(true);
        Ok(Token { header: value, secret })
    }

    async fn whole(&self, before: usize) -> Result<Picture> {
        let token = self.token().await?;
        let mut anew = 0;
        loop {
            match self.once_through(&token, before).await {
                Err(NoPicture::Answers(error)) if error.is_of_the_moment() && anew < ANEW => {
                    anew += 1;
                    tracing::debug!(%error, "the tables are read anew");
                }
                Err(NoPicture::Answers(error)) => return Err(CatalogError::NotWhole(error.to_string())),
                Err(NoPicture::Catalog(error)) => return Err(error),
                Ok(picture) => return Ok(picture),
            }
        }
    }

    async fn once_through(&self, token: &Token, before: usize) -> std::result::Result<Picture, NoPicture> {
        let mut assembly = Assembly::new(&self.reading);
        let limit = self.section.page_size.to_string();
        let mut room = READING_LIMIT;
        let mut after: Option<String> = None;
        loop {
            let mut query = vec![("limit", limit.as_str())];
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page = self.page(token, "classifications", &query, &mut room).await?;
            after = assembly.classifications(&page)?;
            if after.is_none() {
                break;
            }
        }
        loop {
            // Both fields in one parameter: a second one would not count.
            let mut query = vec![("fields", "columns,tags"), ("limit", &limit), ("include", "non-deleted")];
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page = self.page(token, "tables", &query, &mut room).await?;
            after = assembly.tables(&page)?;
            if after.is_none() {
                break;
            }
        }
        let picture = match assembly.counts() {
            (0, _) => assembly.finish(before)?,
            (unmapped, 0) => {
                let picture = assembly.finish(before)?;
                tracing::warn!(unmapped, "no table is of a service that [sync.catalog] services names");
                picture
            }
            (unmapped, _) => {
                tracing::debug!(unmapped, "tables of services that [sync.catalog] services does not name");
                assembly.finish(before)?
            }
        };
        Ok(picture)
    }

    async fn page(
        &self,
        token: &Token,
        list: &str,
        query: &[(&str, &str)],
        room: &mut usize,
    ) -> Result<Bytes> {
        let page = self.get(token, &[list], query).await?.body(list)?;
        *room = room.checked_sub(page.len()).ok_or_else(|| {
            CatalogError::NotWhole(format!("OpenMetadata's answers are longer than {READING_LIMIT} bytes"))
        })?;
        Ok(page)
    }

    /// `last` with the named tables read again; `None`: something is odd, so everything has to be read.
    async fn tables(&self, last: &Picture, hint: &Hint) -> Result<Option<Picture>> {
        let token = self.token().await?;
        let mut picture = last.clone();
        for name in &hint.tables {
            let Some((catalog, schema, table)) = (match self.reading.place(name) {
                Ok(place) => place,
                Err(_) => return Ok(None),
            }) else {
                // Of a service that is nobody's here.
                continue;
            };
            let query = [("fields", "columns,tags"), ("include", "non-deleted")];
            let found = match self.get(&token, &["tables", "name", name], &query).await {
                Ok(Answer::NotFound { gone: true }) => None,
                Ok(Answer::NotFound { gone: false }) => return Ok(None),
                Ok(Answer::Body(body)) => match self.reading.table(&body) {
                    Ok(found) => found,
                    Err(_) => return Ok(None),
                },
                // Some servers refuse names in an address that they have themselves.
                Err(CatalogError::NotWhole(_)) => return Ok(None),
                Err(error) => return Err(error),
            };
            let same = |known: &super::Table| {
                *known.catalog == *catalog && *known.schema == *schema && *known.name == *table
            };
            if found.as_ref().is_some_and(|found| !same(found)) {
                return Ok(None);
            }
            picture.tables.retain(|known| !same(known));
            picture.tables.extend(found);
        }
        if picture.tables.is_empty() && !last.tables.is_empty() {
            return Ok(None);
        }
        Ok(Some(picture))
    }

    async fn get(&self, token: &Token, path: &[&str], query: &[(&str, &str)]) -> Result<Answer> {
        let mut url = self.base.clone();
        match url.path_segments_mut() {
            // Each segment is encoded, whatever a name holds.
            Ok(mut segments) => {
                segments.pop_if_empty().extend(["api", "v1"]).extend(path);
            }
            Err(()) => return Err(CatalogError::Unreachable("base_url is no address".to_owned())),
        }
        url.query_pairs_mut().extend_pairs(query).finish();
        if query.is_empty() {
            url.set_query(None);
        }
        let mut pause = PAUSE;
        let mut tries = 0;
        loop {
            let (why, asked) = match self.once(token, url.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Again { why, after }) => (why, after),
            };
            if tries >= self.section.retries {
                return Err(CatalogError::Unreachable(why));
            }
            tries += 1;
            let wait = waiting(asked, pause);
            pause = (pause * 2).min(LONGEST_PAUSE);
            tracing::debug!(?wait, why, "OpenMetadata is asked again");
            sleep(wait).await;
        }
    }

    async fn once(&self, token: &Token, url: Url) -> std::result::Result<Answer, Failed> {
        let again = |why: String| Failed::Again { why, after: None };
        let request = self.client.get(url).header(reqwest::header::AUTHORIZATION, token.header.clone());
        let answer = match request.send().await {
            Ok(answer) => answer,
            Err(error) => return Err(again(client::told(&error))),
        };
        let (status, headers) = (answer.status(), answer.headers().clone());
        let whole = status == StatusCode::OK;
        // An error's body is for its message alone.
        let limit = if whole { PAGE_LIMIT } else { 64 << 10 };
        let body = match client::body(answer, limit).await {
            Ok(body) => body,
            Err(client::BodyError::TooLong(limit)) if whole => {
                let why = format!("an answer of OpenMetadata is longer than {limit} bytes; lower page_size");
                return Err(Failed::Final(CatalogError::NotWhole(why)));
            }
            Err(_) if !whole => Bytes::new(),
            Err(error) => return Err(again(error.to_string())),
        };
        match status {
            StatusCode::OK if !is_json(&headers) => {
                let why = "OpenMetadata answered with something that is not JSON; is base_url its address, without a proxy's login page before it?";
                Err(Failed::Final(CatalogError::NotWhole(why.to_owned())))
            }
            StatusCode::OK => Ok(Answer::Body(body)),
            StatusCode::NOT_FOUND => Ok(Answer::NotFound { gone: is_json(&headers) && is_gone(&body) }),
            StatusCode::UNAUTHORIZED => Err(Failed::Final(CatalogError::Unauthorized(message(&body, token)))),
            StatusCode::TOO_MANY_REQUESTS => Err(Failed::Again {
                why: said(status, &body, token),
                after: retry_after(&headers, SystemTime::now()),
            }),
            status if status.is_server_error() => Err(Failed::Again {
                why: said(status, &body, token),
                after: retry_after(&headers, SystemTime::now()),
            }),
            status if status.is_redirection() => Err(Failed::Final(CatalogError::NotWhole(format!(
                "OpenMetadata answers {}, a redirect, which is not followed; write its own address as base_url",
                status.as_u16()
            )))),
            status => Err(Failed::Final(CatalogError::NotWhole(said(status, &body, token)))),
        }
    }
}

impl Catalog for OpenMetadata {
    async fn read(&self, before: usize) -> Result<Picture> {
        timeout(READING_TIMEOUT, self.whole(before)).await.unwrap_or_else(|_| Err(too_slow()))
    }

    async fn refresh(&self, last: &Picture, hint: &Hint) -> Result<Picture> {
        if !hint.whole {
            let tables = timeout(READING_TIMEOUT, self.tables(last, hint)).await;
            if let Some(picture) = tables.unwrap_or_else(|_| Err(too_slow()))? {
                return Ok(picture);
            }
        }
        self.read(last.tables.len()).await
    }
}

/// Why a reading came to nothing.
enum NoPicture {
    Answers(PictureError),
    Catalog(CatalogError),
}

impl From<PictureError> for NoPicture {
    fn from(error: PictureError) -> Self {
        Self::Answers(error)
    }
}

impl From<CatalogError> for NoPicture {
    fn from(error: CatalogError) -> Self {
        Self::Catalog(error)
    }
}

impl Answer {
    fn body(self, what: &str) -> Result<Bytes> {
        match self {
            Self::Body(body) => Ok(body),
            Self::NotFound { .. } => Err(CatalogError::NotWhole(format!(
                "OpenMetadata has no /api/v1/{what}; is base_url its address?"
            ))),
        }
    }
}

enum Failed {
    /// Asking again changes nothing.
    Final(CatalogError),
    Again {
        why: String,
        /// As the server asks.
        after: Option<Duration>,
    },
}

fn too_slow() -> CatalogError {
    CatalogError::Unreachable(format!("a reading was not done within {} s", READING_TIMEOUT.as_secs()))
}

fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    kind.split(';').next().is_some_and(|kind| {
        let kind = kind.trim().to_ascii_lowercase();
        kind == "application/json" || kind.ends_with("+json")
    })
}

fn said(status: StatusCode, body: &Bytes, token: &Token) -> String {
    format!("OpenMetadata answers {}: {}", status.as_u16(), message(body, token))
}

/// The server's own words, on one line and short: `message`, or as other servers say it.
fn message(body: &Bytes, token: &Token) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let word = json
        .as_ref()
        .and_then(|json| ["message", "responseMessage"].iter().find_map(|key| json.get(key)?.as_str()));
    word.map_or_else(|| "no message".to_owned(), |word| short(&token.hidden(word)))
}

/// `{"code":404,"message":"table instance for … not found"}`: gateways and servers of other things say 404, too, and
/// OpenMetadata itself for a path that it does not know.
fn is_gone(body: &Bytes) -> bool {
    let json = serde_json::from_slice::<serde_json::Value>(body).unwrap_or_default();
    let message = json.get("message").and_then(|message| message.as_str()).unwrap_or_default();
    json.get("code").and_then(serde_json::Value::as_u64) == Some(404)
        && message.contains("instance for ")
        && message.ends_with(" not found")
}

/// RFC 9110, section 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than a number has are a long time.
        let seconds = text.parse().unwrap_or(u64::MAX);
        return Some(Duration::from_secs(seconds).min(LONGEST_PAUSE));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(now).unwrap_or_default().min(LONGEST_PAUSE))
}

/// How long to wait: as the server asks, or around `pause`.
fn waiting(asked: Option<Duration>, pause: Duration) -> Duration {
    asked.unwrap_or_else(|| pause.mul_f64(rand::random_range(0.5..1.5))).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses() {
        let now = httpdate::parse_http_date("Wed, 21 Oct 2015 07:28:00 GMT").unwrap();
        let cases = [
            ("0", Some(0)),
            ("7", Some(7)),
            (" 7 ", Some(7)),
            ("3600", Some(30)),
            ("99999999999999999999999", Some(30)),
            ("Wed, 21 Oct 2015 07:28:09 GMT", Some(9)),
            ("Wed, 21 Oct 2015 09:28:09 GMT", Some(30)),
            ("Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            ("Wed, 99 Oct 2015 07:00:00 GMT", None),
            ("-1", None),
            ("+1", None),
            ("1.5", None),
            ("", None),
            ("soon", None),
        ];
        for (text, seconds) in cases {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_str(text).unwrap());
            assert_eq!(retry_after(&headers, now), seconds.map(Duration::from_secs), "{text}");
        }
        for _ in 0..1000 {
            let wait = waiting(None, PAUSE);
            assert!(wait >= PAUSE / 2 && wait < PAUSE * 3 / 2, "{wait:?}");
            assert!(waiting(None, LONGEST_PAUSE) <= LONGEST_PAUSE);
        }
        assert_eq!(waiting(Some(Duration::ZERO), PAUSE), Duration::ZERO);
    }

    #[test]
    fn what_a_server_quotes_of_the_token_stays_here() {
        let secret = Secret::new("eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl\n".to_owned());
        let token = Token { header: HeaderValue::from_static("x"), secret };
        let words = |text: &str| {
            message(&serde_json::json!({ "message": text }).to_string().into_bytes().into(), &token)
        };
        assert_eq!(words("Expired token!"), "Expired token!");
        assert_eq!(words("bad: eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl"), "bad: (token)");
        assert_eq!(words("signature c2lnbmF0dXJl is\nwrong"), "signature (token) is\\u{a}wrong");
        // Half of it at the end of what is shown would be too much.
        let cut = words(&format!("{}eyJhbGciOi.eyJzdWIiOi.c2lnbmF0dXJl", "x".repeat(180)));
        assert!(cut.contains("(token)") && !cut.contains("eyJ"), "{cut}");
    }

    #[test]
    fn who_says_that_a_table_is_gone() {
        let cases = [
            (r#"{"code":404,"message":"table instance for pg.shop.public.t not found"}"#, true),
            (r#"{"code":404,"message":"HTTP 404 Not Found"}"#, false),
            (r#"{"message":"no Route matched with those values"}"#, false),
            (r#"{"code":"404","message":"table instance for x not found"}"#, false),
            (r#"{"code":404}"#, false),
            ("default backend - 404", false),
            ("", false),
        ];
        for (body, gone) in cases {
            assert_eq!(is_gone(&Bytes::from_static(body.as_bytes())), gone, "{body}");
        }
    }
}
