"""The gRPC client of docs/serving.md, against a server that answers as TensorFlow Serving does."""

import concurrent.futures
import pathlib
import re

import grpc
import tensorflow as tf
from tensorflow_serving.apis import prediction_service_pb2_grpc

from convbert_tf import serving
from convbert_tf.modeling.encoder import ConvBertEncoder
from convbert_tf.modeling.heads import QuestionAnswerer
from tests.serving.model_server_test import Server
from tests.serving.saved_model_test import MODEL, VOCAB, WINDOWS

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "serving.md"


class Service(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model):
        self.model, self.names = model, []

    def Predict(self, request, context):
        self.names.append(request.model_spec.name)
        return self.model.predict(request)


def test_the_client_of_the_page_gets_its_answer(tmp_path, capsys):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCAB) + "\n")
    tf.keras.utils.set_random_seed(3)
    model = QuestionAnswerer(ConvBertEncoder(MODEL))
    model.save_to_preset(str(tmp_path / "preset"), str(tmp_path / "vocab.txt"))
    serving.export(str(tmp_path / "preset"), str(tmp_path / "qa"), **WINDOWS)
    service = Service(Server(tmp_path / "qa"))
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(1))
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        code = re.search(r"```python\n(import grpc\n.*?)```", PAGE.read_text(), re.S)[1]
        exec(code.replace("localhost:8500", f"127.0.0.1:{port}"), {})
    finally:
        server.stop(None)
    answers = service.model.run(
        "serving_default", {"question": [b"Who wrote it?"], "context": [b"Ada wrote it."]}
    )
    assert capsys.readouterr().out.strip() == str(answers["answer"])
    assert service.names == ["qa"]
