//! Writes the catalogue of a server as `src/sql/stock/N.txt` holds it, to standard output.
//!
//! `cargo run --example stock-catalogue -- 'host=127.0.0.1 port=5432 user=postgres dbname=template1'`
//! on a freshly made server; `tools/stock-catalogue` starts one for each version and calls this.

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let Some(connection) = std::env::args().nth(1) else {
        return Err("usage: stock-catalogue 'host=… port=… user=… dbname=…'".into());
    };
    let (client, driver) = tokio_postgres::connect(&connection, tokio_postgres::NoTls).await?;
    let driver = tokio::spawn(driver);
    let version: String = client.query_one("SHOW server_version", &[]).await?.try_get(0)?;
    let version = version.split_whitespace().next().unwrap_or_default().to_owned();
    let rows = fedgate::upstream::catalogue::rows(&client).await?;
    println!("# PostgreSQL {version}, freshly made; written by examples/stock-catalogue.rs");
    print!("{}", rows.to_text());
    drop(client);
    driver.await??;
    Ok(())
}
