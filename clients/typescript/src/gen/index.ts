// Generated from protos/ by scripts/generate.py.
export * from "./credit/v1/api_key_service_pb.js";
export * from "./credit/v1/billing_service_pb.js";
export * from "./credit/v1/clock_service_pb.js";
export * from "./credit/v1/credit_grant_service_pb.js";
export * from "./credit/v1/credit_transaction_pb.js";
export * from "./credit/v1/credit_transaction_service_pb.js";
export * from "./credit/v1/errors_pb.js";
export * from "./credit/v1/operator_service_pb.js";
export * from "./credit/v1/payment_kit_service_pb.js";
export * from "./credit/v1/registry_service_pb.js";
export * from "./credit/v1/spend_limit_pb.js";
export * from "./credit/v1/statement_service_pb.js";
export * from "./credit/v1/wallet_service_pb.js";
export * from "./credit/v1/webhook_service_pb.js";
