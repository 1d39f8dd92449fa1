//! Commands in the sidecar, over a WebSocket.

use super::Shared;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Path, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

pub(super) async fn exec(
    State(shared): State<Arc<Shared>>,
    Path((_, name)): Path<(String, String)>,
    request: Request,
) -> Response {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let (mut parts, _) = request.into_parts();
    let upgrade = match WebSocketUpgrade::from_request_parts(&mut parts, &()).await {
        Ok(upgrade) => upgrade,
        Err(refused) => return refused.into_response(),
    };
    let upgrade = upgrade.protocols(["v5.channel.k8s.io", "v4.channel.k8s.io"]);
    upgrade.on_upgrade(move |socket| command(shared, name, query, socket))
}

/// A command in the sidecar: hands the XCom out, or lets the sidecar go.
async fn command(shared: Arc<Shared>, name: String, query: String, mut socket: WebSocket) {
    let frame = |channel: u8, text: &str| Message::Binary([&[channel], text.as_bytes()].concat().into());
    if query.contains("return.json") {
        let script = {
            let inside = shared.lock();
            inside.pods[&name]["metadata"]["annotations"]["script"]
                .as_str()
                .unwrap_or("{}")
                .to_owned()
        };
        let script: Value = serde_json::from_str(&script).expect("a script");
        let text = match &script["xcom"] {
            Value::Null => "__airflow_xcom_result_empty__\n".to_owned(),
            value => value.to_string(),
        };
        socket.send(frame(1, &text)).await.ok();
    } else {
        if query.contains("stdin=true") {
            // The command comes as input, and it is the client that ends the connection.
            socket.recv().await;
            socket.send(frame(1, "killed")).await.ok();
            shared.lock().history.push(format!("released {name}"));
            tokio::time::timeout(Duration::from_secs(2), socket.recv())
                .await
                .ok();
            return;
        }
        shared.lock().history.push(format!("released {name}"));
    }
    socket
        .send(frame(
            3,
            &json!({"metadata": {}, "status": "Success"}).to_string(),
        ))
        .await
        .ok();
    socket.send(Message::Close(None)).await.ok();
    drain(socket).await;
}

/// Waits for the other side to end the connection.
async fn drain(mut socket: WebSocket) {
    let ended = async { while socket.recv().await.is_some_and(|message| message.is_ok()) {} };
    tokio::time::timeout(Duration::from_secs(2), ended).await.ok();
}
