//! Routes that make control actors panic, in builds with the feature `fault-hooks` only.

use actix_web::{HttpResponse, web};

use super::state::AdminState;
use crate::actors::supervision::{Panic, PanicAtNextPick};

/// `POST /api/fault/metrics` and `/api/fault/registry` make these actors panic;
/// `POST /api/fault/pick` makes the MetricsActor panic when it is next asked for a pod.
pub(super) fn routes(routes: &mut web::ServiceConfig) {
    routes
        .route("/fault/pick", web::post().to(pick))
        .route("/fault/metrics", web::post().to(metrics))
        .route("/fault/registry", web::post().to(registry));
}

async fn metrics(state: web::Data<AdminState>) -> HttpResponse {
    state.metrics.do_send(Panic);
    HttpResponse::Accepted().finish()
}

async fn registry(state: web::Data<AdminState>) -> HttpResponse {
    state.registry.do_send(Panic);
    HttpResponse::Accepted().finish()
}

async fn pick(state: web::Data<AdminState>) -> HttpResponse {
    state.metrics.do_send(PanicAtNextPick);
    HttpResponse::Accepted().finish()
}
