-- Run once, when the volume is new. Prefect, MLflow and MLflow's users each have a database of their own.
CREATE DATABASE prefect;
CREATE DATABASE mlflow;
CREATE DATABASE mlflow_auth;
