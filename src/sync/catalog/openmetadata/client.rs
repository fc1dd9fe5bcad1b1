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
use crate::config::OpenMetadataSection;
use crate::document::OneLine;
use crate::sync::catalog::{Catalog, CatalogError, Hint, Picture};

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
/// Characters of a server's message that are passed on.
const MESSAGE: usize = 200;

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
        let body = self
            .get(&token, &["system", "version"], &[])
            .await?
            .ok_or_else(|| not_found("system/version"))?;
        let version = serde_json::from_slice::<serde_json::Value>(&body).ok();
        let version = version.and_then(|version| Some(version.get("version")?.as_str()?.to_owned()));
        version.ok_or_else(|| CatalogError::NotWhole("OpenMetadata's version is none".to_owned()))
    }

    /// The bot's token as its file has it now.
    async fn token(&self) -> Result<HeaderValue> {
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
        Ok(value)
    }

    async fn whole(&self, before: usize) -> Result<Picture> {
        let token = self.token().await?;
        let mut assembly = Assembly::new(&self.reading);
        let limit = self.section.page_size.to_string();
        let mut room = READING_LIMIT;
        let mut after: Option<String> = None;
        loop {
            let mut query = vec![("limit", limit.as_str())];
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page = self.page(&token, "classifications", &query, &mut room).await?;
            after = assembly.classifications(&page).map_err(not_whole)?;
            if after.is_none() {
                break;
            }
        }
        loop {
            // Both fields in one parameter: a second one would not count.
            let mut query = vec![("fields", "columns,tags"), ("limit", &limit), ("include", "non-deleted")];
            query.extend(after.as_deref().map(|after| ("after", after)));
            let page = self.page(&token, "tables", &query, &mut room).await?;
            after = assembly.tables(&page).map_err(not_whole)?;
            if after.is_none() {
                break;
            }
        }
        if assembly.unmapped() > 0 {
            tracing::debug!(
                tables = assembly.unmapped(),
                "tables of services that [sync.catalog] services does not name"
            );
        }
        assembly.finish(before).map_err(not_whole)
    }

    async fn page(
        &self,
        token: &HeaderValue,
        list: &str,
        query: &[(&str, &str)],
        room: &mut usize,
    ) -> Result<Bytes> {
        let page = self.get(token, &[list], query).await?.ok_or_else(|| not_found(list))?;
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
            let answer = self.get(&token, &["tables", "name", name], &query).await?;
            let found = match answer {
                None => None,
                Some(body) => match self.reading.table(&body) {
                    Ok(found) => found,
                    Err(_) => return Ok(None),
                },
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

    /// The answer's body; `None` for 404.
    async fn get(&self, token: &HeaderValue, path: &[&str], query: &[(&str, &str)]) -> Result<Option<Bytes>> {
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
                Ok(body) => return Ok(body),
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Again { why, after }) => (why, after),
            };
            if tries >= self.section.retries {
                return Err(CatalogError::Unreachable(why));
            }
            tries += 1;
            let wait =
                asked.unwrap_or_else(|| pause.mul_f64(rand::random_range(0.5..1.5))).min(LONGEST_PAUSE);
            pause = (pause * 2).min(LONGEST_PAUSE);
            tracing::debug!(?wait, why, "OpenMetadata is asked again");
            sleep(wait).await;
        }
    }

    async fn once(&self, token: &HeaderValue, url: Url) -> std::result::Result<Option<Bytes>, Failed> {
        let again = |why: String| Failed::Again { why, after: None };
        let request = self.client.get(url).header(reqwest::header::AUTHORIZATION, token.clone());
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
            StatusCode::OK => Ok(Some(body)),
            StatusCode::NOT_FOUND => Ok(None),
            StatusCode::UNAUTHORIZED => Err(Failed::Final(CatalogError::Unauthorized(message(&body)))),
            StatusCode::TOO_MANY_REQUESTS => {
                Err(Failed::Again { why: said(status, &body), after: retry_after(&headers) })
            }
            status if status.is_server_error() => {
                Err(Failed::Again { why: said(status, &body), after: retry_after(&headers) })
            }
            status if status.is_redirection() => Err(Failed::Final(CatalogError::NotWhole(format!(
                "OpenMetadata answers {}, a redirect, which is not followed; write its own address as base_url",
                status.as_u16()
            )))),
            status => Err(Failed::Final(CatalogError::NotWhole(said(status, &body)))),
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

enum Failed {
    /// Asking again changes nothing.
    Final(CatalogError),
    Again {
        why: String,
        /// As the server asks.
        after: Option<Duration>,
    },
}

fn not_whole(error: PictureError) -> CatalogError {
    CatalogError::NotWhole(error.to_string())
}

fn not_found(what: &str) -> CatalogError {
    CatalogError::NotWhole(format!("OpenMetadata has no /api/v1/{what}; is base_url its address?"))
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

fn said(status: StatusCode, body: &Bytes) -> String {
    format!("OpenMetadata answers {}: {}", status.as_u16(), message(body))
}

/// The server's own words, on one line and short: `message`, or as other servers say it.
fn message(body: &Bytes) -> String {
    let json = serde_json::from_slice::<serde_json::Value>(body).ok();
    let word = json
        .as_ref()
        .and_then(|json| ["message", "responseMessage"].iter().find_map(|key| json.get(key)?.as_str()));
    let Some(word) = word else { return "no message".to_owned() };
    let short: String = word.chars().take(MESSAGE).collect();
    OneLine(&short).to_string()
}

/// RFC 9110, section 10.2.3: seconds, or a date.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse::<u64>() {
        return Some(Duration::from_secs(seconds).min(LONGEST_PAUSE));
    }
    let date = httpdate::parse_http_date(text).ok()?;
    Some(date.duration_since(SystemTime::now()).unwrap_or_default().min(LONGEST_PAUSE))
}
