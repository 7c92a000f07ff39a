"""What the servers written by hand say, however they say it."""


class Refusal(Exception):
    def __init__(self, code, message, data=None):
        super().__init__(message)
        self.error = {"code": code, "message": message} | ({"data": data} if data is not None else {})


def text(said, **more):
    return {"content": [{"type": "text", "text": said}], **more}


def form(message, **properties):
    schema = {"type": "object", "properties": properties, "required": sorted(properties)}
    return {"method": "elicitation/create", "params": {"message": message, "requestedSchema": schema}}
