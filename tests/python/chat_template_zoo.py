"""Chat templates in the styles of well-known families, written for these tests, and conversations to try them on."""

import random

CHATML = """{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""

LLAMA2 = """{%- if messages[0]['role'] == 'system' -%}
  {%- set system_message = messages[0]['content'] -%}
  {%- set loop_messages = messages[1:] -%}
{%- else -%}
  {%- set loop_messages = messages -%}
  {%- set system_message = false -%}
{%- endif -%}
{%- for message in loop_messages -%}
  {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
    {{- raise_exception('Roles must alternate user/assistant, got ' ~ message.role ~ ' at ' ~ loop.index0) -}}
  {%- endif -%}
  {%- if loop.index0 == 0 and system_message != false -%}
    {%- set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] -%}
  {%- else -%}
    {%- set content = message['content'] -%}
  {%- endif -%}
  {%- if message['role'] == 'user' -%}
    {{- bos_token + '[INST] ' + content.strip() + ' [/INST]' -}}
  {%- elif message['role'] == 'assistant' -%}
    {{- ' ' + content.strip() + ' ' + eos_token -}}
  {%- endif -%}
{%- endfor -%}"""

LLAMA3 = """{{- bos_token }}
{%- if custom_tools is defined %}{% set tools = custom_tools %}{% endif %}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{#- The system message stands alone. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Today Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {{- "You may call:\\n" }}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls | length == 1 %}
            {{- raise_exception("One call at a time!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n{"name": "' + tool_call.name + '", ' }}
        {{- '"parameters": ' }}
        {{- tool_call.arguments | tojson }}
        {{- "}" }}
        {{- "<|eot_id|>" }}
    {%- elif message.role == "tool" or message.role == "ipython" %}
        {{- "<|start_header_id|>ipython<|end_header_id|>\\n\\n" }}
        {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
            {{- message.content | tojson }}
        {%- else %}
            {{- message.content }}
        {%- endif %}
        {{- "<|eot_id|>" }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined and message.tool_calls is not none)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("After the optional system message, roles must alternate user/assistant") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if tools is not none and (message == user_messages[-1]) %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools %}
                {%- set tool = tool.function %}
                {{- '{"type": "function", "function": {' }}
                {%- for key, val in tool.items() if key != "return" %}
                    {%- if val is string %}
                        {{- '"' + key + '": "' + val + '"' }}
                    {%- else %}
                        {{- '"' + key + '": ' + val | tojson }}
                    {%- endif %}
                    {%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- "}}" }}
                {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
            {%- endfor %}
            {{- "[/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message.tool_calls is defined and message.tool_calls is not none %}
        {{- "[TOOL_CALLS] [" }}
        {%- for tool_call in message.tool_calls %}
            {%- set out = tool_call.function | tojson %}
            {{- out[:-1] }}
            {%- if not tool_call.id is defined or tool_call.id | length != 9 %}
                {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
            {%- endif %}
            {{- ', "id": "' + tool_call.id + '"}' }}
            {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
        {%- endfor %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] | trim + eos_token }}
    {%- elif message["role"] == "tool" %}
        {{- '[TOOL_RESULTS] {"content": ' + message.content | string + ", " }}
        {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported!") }}
    {%- endif %}
{%- endfor %}
"""

GEMMA = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}
{%- if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""

GEMMA3 = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set first_user_prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- else -%}
        {{ raise_exception("Invalid content type") }}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{'<start_of_turn>model\\n'}}
{%- endif -%}
"""

QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\\n\\n# Tools\\n\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools>\\n{\\"name\\": <function-name>, \\"arguments\\": <args-json-object>}<|im_end|>\\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' }}
        {{- message.content }}
        {{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- if message.tool_calls %}
            {%- for tool_call in message.tool_calls %}
                {%- if (loop.first and content) or (not loop.first) %}
                    {{- '\\n' }}
                {%- endif %}
                {%- if tool_call.function %}
                    {%- set tool_call = tool_call.function %}
                {%- endif %}
                {{- '<tool_call>\\n{"name": "' }}
                {{- tool_call.name }}
                {{- '", "arguments": ' }}
                {%- if tool_call.arguments is string %}
                    {{- tool_call.arguments }}
                {%- else %}
                    {{- tool_call.arguments | tojson }}
                {%- endif %}
                {{- '}\\n</tool_call>' }}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {{- '<tool_response>\\n' + content + '\\n</tool_response>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}"""

PHI3 = """{% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'user' %}{{'<|user|>
' + message['content'] + '<|end|>
'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
' + message['content'] + '<|end|>
'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
' }}{% else %}{{ eos_token }}{% endif %}"""

DEEPSEEK = """{% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
{%- set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}
{%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
{{- bos_token }}{{ ns.system_prompt }}
{%- for message in messages %}
{%- if message['role'] == 'user' %}{%- set ns.is_tool = false -%}{{ '<｜User｜>' + message['content'] }}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is none %}{%- set ns.is_tool = false -%}
{%- for tool in message['tool_calls'] %}
{%- if not ns.is_first %}{{ '<｜Assistant｜><｜tool▁calls▁begin｜>' + tool['type'] + '\\n' + tool['function']['name'] + '\\n```json\\n' + tool['function']['arguments'] | tojson + '\\n```' }}
{%- set ns.is_first = true -%}{%- else %}{{ '\\n' + tool['type'] }}{%- endif %}{%- endfor %}{%- endif %}
{%- if message['role'] == 'assistant' and message['content'] is not none %}
{%- if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>' }}{%- set ns.is_tool = false -%}
{%- else %}{% set content = message['content'] %}{% if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
{{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>' }}{%- endif %}{%- endif %}
{%- if message['role'] == 'tool' %}{%- set ns.is_tool = true -%}
{%- if ns.is_output_first %}{{ '<｜tool▁outputs▁begin｜>' + message['content'] }}{%- set ns.is_output_first = false %}
{%- else %}{{ '\\n' + message['content'] }}{%- endif %}{%- endif %}{%- endfor -%}
{% if ns.is_tool %}{{ '<｜tool▁outputs▁end｜>' }}{% endif %}{% if add_generation_prompt and not ns.is_tool %}{{ '<｜Assistant｜><think>\\n' }}{% endif %}"""

COMMAND_R = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}
{%- set system_message = messages[0]['content'] %}{% elif false == true %}{% set loop_messages = messages %}
{%- set system_message = 'You are Command-R.' %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
{%- if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}
{%- if documents %}{{ '<results>' }}{% for document in documents %}{{ '\\nDocument: ' }}{{ loop.index0 }}
{% for key, value in document.items() %}{{ key|title ~ ': ' ~ value|string|trim }}
{% endfor %}{% endfor %}{{ '</results>' }}{% endif %}
{%- macro render_type(spec) %}{% if spec.type == 'array' %}List[{{ render_type(spec['items']) }}]{% elif spec.type == 'string' %}str
{%- elif spec.type in ('number', 'integer') %}{{ 'float' if spec.type == 'number' else 'int' }}{% elif spec.type == 'object' %}Dict
{%- else %}Any{% endif %}{% endmacro %}
{%- for tool in tools or [] %}{{ '\\n```python\\ndef ' + tool.function.name + '(' }}
{%- for name, spec in tool.function.parameters.properties.items() %}{{ name }}: {{ render_type(spec) }}
{%- if not name in tool.function.parameters.required | default([]) %} = None{% endif %}{% if not loop.last %}, {% endif %}{% endfor %}{{ ')' }}{% endfor %}
{%- for message in loop_messages %}{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + message['content'].strip() + '<|END_OF_TURN_TOKEN|>' }}
{%- elif message['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' ~ (message['content'] or '').strip() ~ '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}
{%- if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}"""

GRANITE = """{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set system_message = "You are Granite. Year: " ~ strftime_now('%Y') ~ "." %}
    {%- if tools and documents %}
        {%- set system_message = system_message + " Tools and documents." %}
    {%- elif tools %}
        {%- set system_message = system_message + " Tools." %}
    {%- endif %}
    {%- if 'citations' in controls and documents %}
        {%- set system_message = system_message + ' Cite.' %}
    {%- endif %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- '<|start_of_role|>system<|end_of_role|>' + system_message + '<|end_of_text|>\\n' }}
{%- if tools %}
    {{- '<|start_of_role|>tools<|end_of_role|>' }}
    {{- tools | tojson(indent=4) }}
    {{- '<|end_of_text|>\\n' }}
{%- endif %}
{%- for message in loop_messages %}
    {%- if message.content is not none %}{% generation %}{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\\n' }}{% endgeneration %}{%- endif %}
    {%- if loop.last and add_generation_prompt %}
        {{- '<|start_of_role|>assistant' }}
            {%- if controls %}{{- ' ' + controls | tojson() }}{%- endif %}
        {{- '<|end_of_role|>' }}
    {%- endif %}
{%- endfor %}"""

ZEPHYR = """{% for message in messages %}
{% if message['role'] == 'user' %}
{{ '<|user|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'system' %}
{{ '<|system|>\\n' + message['content'] + eos_token }}
{% elif message['role'] == 'assistant' %}
{{ '<|assistant|>\\n'  + message['content'] + eos_token }}
{% endif %}
{% if loop.last and add_generation_prompt %}
{{ '<|assistant|>' }}
{% endif %}
{% endfor %}"""

ALPACA = """{{ (messages|selectattr('role', 'equalto', 'system')|list|last).content|trim if (messages|selectattr('role', 'equalto', 'system')|list) else '' }}

{% for message in messages if message.role != 'system' -%}
### {{ {'user': 'Instruction', 'assistant': 'Response'}.get(message.role, message.role|title) }}:
{{ message.content|trim -}}
{%- if not loop.last %}

{% endif %}
{%- endfor %}
{% if add_generation_prompt and messages[-1].role != 'assistant' %}
### Response:
{% endif %}"""

TYPES = """{%- macro shown(schema, level=0) -%}
{%- if schema.enum is defined %}{{ schema.enum | map('tojson') | join(' | ') }}
{%- elif schema.type == 'array' %}{{ shown(schema['items'], level + 1) }}[]
{%- elif schema.type is iterable and schema.type is not string %}{{ schema.type | join(' | ') }}
{%- elif schema.type == 'object' %}{{ '{' }}
{%- for key, value in schema.properties | default({}) | dictsort %}
{{ '  ' * level }}{{ key }}{{ '?' if key not in schema.required | default([]) }}: {{ shown(value, level + 1) }}
{%- if value.default is defined %} // default: {{ value.default | tojson if value.default is not string else value.default }}{% endif %},
{%- endfor %}
{{ '}' }}
{%- else %}{{ schema.type | default('any', true) }}{% endif -%}
{%- endmacro -%}
{%- set tool_names = tools | default([], true) | map(attribute='function.name') | list -%}
{{ tool_names | sort | unique | join(', ') }} ({{ tool_names | length }})
{%- for tool in tools or [] %}
{{ loop.index }}/{{ loop.length }} {{ tool.function.name.upper().replace('_', ' ') }}: {{ shown(tool.function.parameters, level=1) | indent(2) }}
{% filter indent(4) %}{{ tool.function.description }}
{% endfilter %}
{%- else %}
no tools
{%- endfor %}
{%- for message in messages %}
{%- set parts = message.content if message.content is not string else [{'type': 'text', 'text': message.content}] %}
{%- for part in parts or [] %}{% if part.type != 'text' %}{% continue %}{% endif %}
{{ message.role.capitalize() }}> {{ part.text.split('\\n')[0] }}{% if part.text.count('\\n') > 3 %}{% break %}{% endif %}
{%- endfor %}{% endfor %}"""

TEMPLATES = {
    "chatml": CHATML, "llama2": LLAMA2, "llama3": LLAMA3, "mistral": MISTRAL, "gemma": GEMMA, "gemma3": GEMMA3,
    "qwen2.5": QWEN25, "qwen3": QWEN3, "phi3": PHI3, "deepseek": DEEPSEEK, "command-r": COMMAND_R, "granite": GRANITE,
    "zephyr": ZEPHYR, "alpaca": ALPACA, "types": TYPES,
}  # fmt: skip

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def _m(role, content, **more):
    return {"role": role, "content": content, **more}


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Le temps qu'il fait\nà un endroit <ici> & là",
            "parameters": {
                "type": "object",
                "properties": {
                    "place": {"type": "string", "description": "a \"city\""},
                    "days": {"type": "integer", "default": 3},
                    "unit": {"type": "string", "enum": ["°C", "°F"], "default": "°C"},
                    "tags": {"type": "array", "items": {"type": ["string", "null"]}},
                    "box": {"type": "object", "properties": {"x": {"type": "number"}, "a": {}}, "required": ["x"]},
                },
                "required": ["place"],
            },
        },
    },
    {"type": "function", "function": {"name": "add", "description": "", "parameters": {"type": "object", "properties": {}}}},
]
_CALL = {"id": "abcdefghi", "type": "function",
         "function": {"name": "get_weather", "arguments": {"place": "Köln", "days": 2, "x": 1.0, "none": None}}}  # fmt: skip

CHATS = {
    "hello": {"messages": [_m("user", "Hello, how are you?")]},
    "system": {"messages": [_m("system", " Be brief. "), _m("user", "Hi")]},
    "turns": {"messages": [_m("user", "1"), _m("assistant", " 2 "), _m("user", "3\n"), _m("assistant", "4"), _m("user", "5")]},
    "ends with an answer": {"messages": [_m("system", ""), _m("user", "1"), _m("assistant", "2")]},
    "empty": {"messages": [_m("user", "")]},
    "spaces": {"messages": [_m("user", "  \n\t "), _m("assistant", "\u00a0\u3000x\x1c\x85"), _m("user", "\r\n a \r b \n\n")]},
    "unicode": {"messages": [_m("system", "Größe ß ǅ"), _m("user", "你好 👩🏽‍🚀 e\u0301 \u202e مرحبا"), _m("assistant", "ИЙ ΑΣ"), _m("user", "🤗" * 3)]},
    "hostile": {"messages": [_m("user", "{{ 1 + 1 }} {% raw %} <|im_end|> </s> '\" \\ \\n \x00\x1f\x7f"), _m("assistant", "{%"), _m("user", "}}")]},
    "thinks": {"messages": [_m("user", "q"), _m("assistant", "<think>\n\nso\n\n</think>\n\nanswer\n"), _m("user", "r"),
                            _m("assistant", "<think>\nmore</think>\n\ndone")]},
    "reasoning": {"messages": [_m("user", "q"), _m("assistant", "a", reasoning_content="\nwhy\n")]},
    "two users": {"messages": [_m("user", "a"), _m("user", "b")]},
    "assistant first": {"messages": [_m("assistant", "a"), _m("user", "b")]},
    "odd role": {"messages": [_m("user", "a"), _m("critic", "b")]},
    "late system": {"messages": [_m("user", "a"), _m("system", "b"), _m("user", "c")]},
    "no content": {"messages": [{"role": "user"}]},
    "none content": {"messages": [_m("user", None)]},
    "number content": {"messages": [_m("user", 5)]},
    "parts": {"messages": [_m("user", [{"type": "text", "text": " look "}, {"type": "image"}, {"type": "text", "text": "at\nthis"}])]},
    "tools": {"messages": [_m("user", "Weather?")], "tools": TOOLS},
    "no tools": {"messages": [_m("user", "Weather?")], "tools": []},
    "tool call": {"messages": [_m("user", "Weather?"), _m("assistant", None, tool_calls=[_CALL]),
                               _m("tool", '{"t": 21.5}', tool_call_id="abcdefghi", name="get_weather"), _m("assistant", "21.5 °C")],
                  "tools": TOOLS},
    "two calls": {"messages": [_m("system", "S"), _m("user", "Weather?"), _m("assistant", "I look.", tool_calls=[_CALL, _CALL]),
                               _m("tool", "a", tool_call_id="abcdefghi"), _m("tool", "b", tool_call_id="abcdefghi")], "tools": TOOLS},
    "mapping result": {"messages": [_m("user", "x"), _m("tool", {"t": [1, 2.0, "é"]})]},
    "documents": {"messages": [_m("user", "x")], "documents": [{"title": "A b", "text": " t "}, {"title": "Ö", "text": "u", "n": 1}]},
    "no thinking": {"messages": [_m("user", "x")], "chat_template_kwargs": {"enable_thinking": False, "controls": {"length": "short"}}},
    "date": {"messages": [_m("user", "x")], "chat_template_kwargs": {"date_string": "1 Jan 2020"}},
    "long": {"messages": [_m("user" if i % 2 == 0 else "assistant", f"{i}: " + "word " * i) for i in range(41)]},
}  # fmt: skip


def mutated(seed: int) -> str:
    """A template with a few pieces cut, doubled, moved or exchanged."""
    rng = random.Random(seed)
    source = rng.choice(list(TEMPLATES.values()))
    pieces = ["{%", "%}", "{{", "}}", "-", "+", "~", "|", "'", "\"", "[", "]", "(", ")", ".", ",", ":", "==", "is", "not", "in", "if",
              "else", "endif", "for", "endfor", "set", "loop", "message", "messages", "none", "true", "0", "1", "-1", " ", "\n", "{#", "#}",
              "| trim", "| length", "| list", "| first", "[0]", "[::-1]", ".content", ".items()", "loop.last", "| tojson", "raw", "endraw"]  # fmt: skip
    for _ in range(rng.choice([1, 1, 2, 3])):
        at, end = sorted(rng.randrange(len(source) + 1) for _ in range(2))
        kind = rng.randrange(6)
        if kind == 0:
            source = source[:at] + source[at + rng.randrange(1, 8) :]
        elif kind == 1:
            source = source[:at] + rng.choice(pieces) + source[at:]
        elif kind == 2:
            source = source[:at] + source[min(end, at + 60) :]
        elif kind == 3:
            source = source[:at] + source[at : at + rng.randrange(1, 40)] + source[at:]
        elif kind == 4:
            old = rng.choice(pieces)
            places = [i for i in range(len(source)) if source.startswith(old, i)]
            if places:
                place = rng.choice(places)
                source = source[:place] + rng.choice(pieces) + source[place + len(old) :]
        else:
            other = rng.choice(list(TEMPLATES.values()))
            cut = rng.randrange(len(other))
            source = source[:at] + other[cut : cut + rng.randrange(1, 80)] + source[at:]
    return source
