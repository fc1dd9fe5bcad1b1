//! stub
use std::sync::Arc;
pub struct Parts {
    pub metrics: Arc<crate::metrics::Metrics>,
    pub status: tokio::sync::watch::Receiver<crate::status::GatewayStatus>,
}
pub async fn serve(
    _l: tokio::net::TcpListener,
    _p: Parts,
    stop: impl std::future::Future<Output = ()>,
) -> std::io::Result<()> {
    stop.await;
    Ok(())
}
