-- Run once, when the volume is new. Each service has a user of its own, who owns its databases and enters no other.
\getenv prefect_password PREFECT_DB_PASSWORD
\getenv mlflow_password MLFLOW_DB_PASSWORD
CREATE USER prefect PASSWORD :'prefect_password';
CREATE USER mlflow PASSWORD :'mlflow_password';
CREATE DATABASE prefect OWNER prefect;
CREATE DATABASE mlflow OWNER mlflow;
CREATE DATABASE mlflow_auth OWNER mlflow;
REVOKE CONNECT, TEMPORARY ON DATABASE prefect, mlflow, mlflow_auth, hm3, postgres, template1 FROM PUBLIC;
