// Java's HttpClient with its defaults: it offers h2c with each request of a connection that has not been upgraded.
import java.net.URI;
import java.net.http.HttpClient;
import java.net.http.HttpRequest;
import java.net.http.HttpResponse.BodyHandlers;

public class Offers {
    public static void main(String[] urls) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (String url : urls) {
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(url));
            print(client, request.GET().build());
            print(client, request.POST(HttpRequest.BodyPublishers.ofString("a body")).build());
        }
    }

    static void print(HttpClient client, HttpRequest request) throws Exception {
        System.out.println(client.send(request, BodyHandlers.ofString()).statusCode() + " " + request.method());
    }
}
